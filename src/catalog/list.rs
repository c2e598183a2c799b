//! Lists of recordings: filters, search, pages.

use base64::Engine;
use base64::prelude::BASE64_URL_SAFE_NO_PAD;
use sqlx::Row as _;
use time::OffsetDateTime;

use super::db::{Found, Statement, micros, query, text, within};
use super::row::{Row, Status};
use super::{Catalog, CatalogError};
use crate::recording::Outcome;

/// The most recordings on one page.
pub const MAX_PAGE: u32 = 500;

/// Which recordings are meant; what is `None` does not matter.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Filter {
    /// Of the room of this name.
    pub room: Option<String>,
    /// Of the room of this LiveKit id.
    pub room_id: Option<String>,
    /// Of the room of this name or this LiveKit id.
    pub room_or_id: Option<String>,
    /// That stand so; any where there is none.
    pub status: Vec<Status>,
    /// Of which this became.
    pub outcome: Option<Outcome>,
    /// In which this identity was.
    pub participant: Option<String>,
    /// That this rule wanted.
    pub rule: Option<String>,
    /// That began then or later.
    pub from: Option<OffsetDateTime>,
    /// That began before then.
    pub to: Option<OffsetDateTime>,
    /// In whose room name, ids, or participants' identities and names this text stands; ASCII letters in either case.
    pub search: Option<String>,
    /// Deleted ones rather than those that are there.
    pub deleted: bool,
}

/// One page of a list.
#[derive(Clone, Debug, PartialEq)]
pub struct Page {
    /// The recordings, the newest first.
    pub rows: Vec<Row>,
    /// Where the next page begins, for [`Catalog::list`]; none after the last.
    pub next: Option<String>,
}

/// How many recordings stand so.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Count {
    /// Where they stand.
    pub status: Status,
    /// What became of them.
    pub outcome: Option<String>,
    /// How many.
    pub recordings: u64,
}

impl Catalog {
    /// One page of the recordings that `filter` means, the newest first: up to `limit` (1 to [`MAX_PAGE`]), from where the page
    /// before ended. Recordings that begin meanwhile move no other.
    ///
    /// # Errors
    ///
    /// [`CatalogError::Cursor`] for a cursor that no list gave; what any call may meet (see [`get`](Self::get)).
    pub async fn list(&self, filter: &Filter, cursor: Option<&str>, limit: u32) -> Result<Page, CatalogError> {
        let limit = limit.clamp(1, MAX_PAGE);
        let mut clauses = Clauses::of(filter);
        if let Some(cursor) = cursor {
            let (at, id) = decode(cursor).ok_or(CatalogError::Cursor)?;
            let (at, id) = (clauses.value(Value::Number(at)), clauses.value(Value::Number(id)));
            clauses.add(format!("(created_at, id) < ({at}, {id})"));
        }
        let places = clauses.value(Value::Number(i64::from(limit) + 1));
        let which = format!("{} ORDER BY created_at DESC, id DESC LIMIT {places}", clauses.sql());
        let mut rows = self.rows(&which, |sql| clauses.bind(sql)).await?;
        let more = rows.len() > limit as usize;
        rows.truncate(limit as usize);
        let next = rows.last().filter(|_| more).map(|last| encode(micros(last.created_at), last.id));
        Ok(Page { rows, next })
    }

    /// How many recordings `filter` means.
    ///
    /// # Errors
    ///
    /// As [`get`](Self::get).
    pub async fn count(&self, filter: &Filter) -> Result<u64, CatalogError> {
        within(async {
            let clauses = Clauses::of(filter);
            let sql = query(format!("SELECT COUNT(*) AS found FROM recordings {}", clauses.sql()));
            let found: i64 = clauses.bind(sql).fetch_one(self.db.pool()).await?.try_get("found")?;
            Ok(u64::try_from(found).unwrap_or(0))
        })
        .await
    }

    /// How many recordings stand how; deleted ones do not count.
    ///
    /// # Errors
    ///
    /// As [`get`](Self::get).
    pub async fn counts(&self) -> Result<Vec<Count>, CatalogError> {
        within(async {
            let sql = "SELECT status, outcome, COUNT(*) AS found FROM recordings WHERE deleted_at IS NULL \
                       GROUP BY status, outcome ORDER BY status, outcome";
            let found = query(sql).fetch_all(self.db.pool()).await?;
            let count = |row| {
                let row = Found(row);
                let recordings = u64::try_from(row.get::<i64>("found")?).unwrap_or(0);
                Ok(Count { status: row.word("status")?, outcome: row.get("outcome")?, recordings })
            };
            found.iter().map(count).collect()
        })
        .await
    }
}

/// Conditions, and their values. What others say is only ever a value.
struct Clauses {
    all: Vec<String>,
    values: Vec<Value>,
}

enum Value {
    Text(String),
    Number(i64),
}

impl Clauses {
    fn of(filter: &Filter) -> Self {
        let mut clauses = Self { all: Vec::new(), values: Vec::new() };
        clauses.add(if filter.deleted { "deleted_at IS NOT NULL" } else { "deleted_at IS NULL" }.to_owned());
        for (column, wanted) in [("room_name", &filter.room), ("room_id", &filter.room_id), ("rule", &filter.rule)] {
            if let Some(wanted) = wanted {
                let place = clauses.text(wanted);
                clauses.add(format!("{column} = {place}"));
            }
        }
        if let Some(room) = &filter.room_or_id {
            let place = clauses.text(room);
            clauses.add(format!("(room_name = {place} OR room_id = {place})"));
        }
        if !filter.status.is_empty() {
            let places: Vec<String> = filter.status.iter().map(|status| clauses.text(status.as_str())).collect();
            clauses.add(format!("status IN ({})", places.join(", ")));
        }
        if let Some(outcome) = filter.outcome {
            let place = clauses.text(&outcome.to_string());
            clauses.add(format!("outcome = {place}"));
        }
        if let Some(identity) = &filter.participant {
            let place = clauses.text(identity);
            clauses.add(format!("recording_id IN (SELECT recording_id FROM participants WHERE identity = {place})"));
        }
        for (comparison, moment) in [(">=", filter.from), ("<", filter.to)] {
            if let Some(moment) = moment {
                let place = clauses.value(Value::Number(micros(moment)));
                clauses.add(format!("COALESCE(started_at, created_at) {comparison} {place}"));
            }
        }
        if let Some(search) = filter.search.as_deref().filter(|search| !search.is_empty()) {
            let place = clauses.text(&pattern(search));
            let like = |column: &str| format!("LOWER({column}) LIKE {place} ESCAPE '!'");
            clauses.add(format!(
                "({} OR {} OR {} OR {} OR recording_id IN (SELECT recording_id FROM participants WHERE {} OR {}))",
                like("room_name"),
                like("room_id"),
                like("recording_id"),
                like("COALESCE(egress_id, '')"),
                like("identity"),
                like("name"),
            ));
        }
        clauses
    }

    fn add(&mut self, clause: String) {
        self.all.push(clause);
    }

    /// Takes a value and gives its place.
    fn value(&mut self, value: Value) -> String {
        self.values.push(value);
        format!("${}", self.values.len())
    }

    fn text(&mut self, value: &str) -> String {
        self.value(Value::Text(text(value)))
    }

    fn sql(&self) -> String {
        format!("WHERE {}", self.all.join(" AND "))
    }

    fn bind(self, sql: Statement) -> Statement {
        self.values.into_iter().fold(sql, |sql, value| match value {
            Value::Text(text) => sql.bind(text),
            Value::Number(number) => sql.bind(number),
        })
    }
}

/// The pattern that finds `search` anywhere, and nothing else by it.
fn pattern(search: &str) -> String {
    let lower = search.to_ascii_lowercase();
    format!("%{}%", lower.replace('!', "!!").replace('%', "!%").replace('_', "!_"))
}

fn encode(at: i64, id: i64) -> String {
    BASE64_URL_SAFE_NO_PAD.encode(format!("{at}.{id}"))
}

fn decode(cursor: &str) -> Option<(i64, i64)> {
    let plain = BASE64_URL_SAFE_NO_PAD.decode(cursor).ok()?;
    let (at, id) = std::str::from_utf8(&plain).ok()?.split_once('.')?;
    Some((at.parse().ok()?, id.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_cursors_of_a_list_are_taken() {
        assert_eq!(decode(&encode(-5, i64::MAX)), Some((-5, i64::MAX)));
        for wrong in
            ["", "1.2", "!!!", &BASE64_URL_SAFE_NO_PAD.encode("1.2.3"), &BASE64_URL_SAFE_NO_PAD.encode("' OR 1")]
        {
            assert_eq!(decode(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn what_is_searched_for_is_no_pattern() {
        assert_eq!(pattern("100%_A!"), "%100!%!_a!!%");
    }
}
