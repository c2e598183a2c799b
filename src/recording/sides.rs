//! Who is heard on which side of a dual file. Pure.

use std::collections::BTreeMap;

use crate::call::{Participant, ParticipantKind};
use crate::config::SideRules;
use crate::mix::Side;

/// Gives everybody a side, once, when they are first heard of as speakers.
///
/// 1. Whom the left's rules pick is left; else whom the right's rules pick is right.
/// 2. Where only one side has rules, everybody else is on the other.
/// 3. Else each of the first two gets a side: telephone legs the left, agents the right, where it is free.
/// 4. All others fold into a side: agents into the right, everybody else into the left.
///
/// Who comes back under the same identity is where they were.
#[derive(Debug)]
pub struct Sides {
    rules: SideRules,
    placed: BTreeMap<String, Side>,
}

impl Sides {
    /// Nobody has a side yet.
    pub fn new(rules: SideRules) -> Self {
        Self { rules, placed: BTreeMap::new() }
    }

    /// Puts somebody where they were before.
    pub fn keep(&mut self, identity: &str, side: Side) {
        self.placed.insert(identity.to_owned(), side);
    }

    /// The side of `participant`, who was the `joined`th to join (from 1 on).
    pub fn place(&mut self, participant: &Participant, joined: usize) -> Side {
        if let Some(side) = self.placed.get(&participant.identity) {
            return *side;
        }
        let side = self.by_rule(participant, joined).unwrap_or_else(|| self.by_kind(participant.kind));
        self.placed.insert(participant.identity.clone(), side);
        side
    }

    fn by_rule(&self, participant: &Participant, joined: usize) -> Option<Side> {
        let SideRules { left, right } = &self.rules;
        if left.iter().any(|rule| rule.picks(participant, joined)) {
            return Some(Side::Left);
        }
        if right.iter().any(|rule| rule.picks(participant, joined)) {
            return Some(Side::Right);
        }
        match (left.is_empty(), right.is_empty()) {
            (false, true) => Some(Side::Right),
            (true, false) => Some(Side::Left),
            _ => None,
        }
    }

    fn by_kind(&self, kind: ParticipantKind) -> Side {
        let wanted = if kind == ParticipantKind::Agent { Side::Right } else { Side::Left };
        let is_free = |side: Side| !self.placed.values().any(|taken| *taken == side);
        if !is_free(wanted) && is_free(wanted.other()) { wanted.other() } else { wanted }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::mix::Side::{Left, Right};

    const STANDARD: ParticipantKind = ParticipantKind::Standard;
    const SIP: ParticipantKind = ParticipantKind::Sip;
    const AGENT: ParticipantKind = ParticipantKind::Agent;

    fn place(left: &[&str], right: &[&str], people: &[(&str, ParticipantKind)]) -> Vec<Side> {
        let rules = |rules: &[&str]| rules.iter().map(|rule| rule.parse().unwrap()).collect();
        let mut sides = Sides::new(SideRules { left: rules(left), right: rules(right) });
        let mut seen: Vec<&str> = Vec::new();
        let place = |&(identity, kind): &(&'static str, ParticipantKind)| {
            if !seen.contains(&identity) {
                seen.push(identity);
            }
            let joined = seen.iter().position(|known| *known == identity).unwrap() + 1;
            sides.place(&Participant { identity: identity.into(), kind, ..Participant::default() }, joined)
        };
        let people: Vec<(&'static str, ParticipantKind)> =
            people.iter().map(|(identity, kind)| (&*String::leak((*identity).to_owned()), *kind)).collect();
        people.iter().map(place).collect()
    }

    #[test]
    fn callers_are_left_and_agents_right_whoever_comes_first() {
        assert_eq!(place(&[], &[], &[("caller", SIP), ("agent", AGENT)]), [Left, Right]);
        assert_eq!(place(&[], &[], &[("agent", AGENT), ("caller", SIP)]), [Right, Left]);
        assert_eq!(place(&[], &[], &[("agent", AGENT), ("browser", STANDARD)]), [Right, Left]);
    }

    #[test]
    fn the_first_two_never_share_a_side() {
        for (one, two, first) in
            [(STANDARD, STANDARD, Left), (SIP, SIP, Left), (AGENT, AGENT, Right), (STANDARD, SIP, Left)]
        {
            assert_eq!(place(&[], &[], &[("a", one), ("b", two)]), [first, first.other()], "{one:?} {two:?}");
        }
    }

    #[test]
    fn further_people_fold_by_kind() {
        let people = [("a", STANDARD), ("b", STANDARD), ("c", STANDARD), ("d", AGENT), ("e", SIP)];
        assert_eq!(place(&[], &[], &people), [Left, Right, Left, Right, Left]);
    }

    #[test]
    fn rules_come_first_and_the_left_before_the_right() {
        let people = [("caller", SIP), ("agent", AGENT)];
        assert_eq!(place(&["kind=agent"], &["kind=sip"], &people), [Right, Left]);
        assert_eq!(place(&["identity=caller"], &["kind=sip", "join=2"], &people), [Left, Right]);
    }

    #[test]
    fn where_one_side_has_rules_everybody_else_is_on_the_other() {
        let people = [("a", STANDARD), ("b", SIP), ("c", STANDARD)];
        assert_eq!(place(&["kind=sip"], &[], &people), [Right, Left, Right]);
        assert_eq!(place(&[], &["join=2"], &people), [Left, Right, Left]);
    }

    #[test]
    fn rules_on_both_sides_leave_the_rest_to_their_kind() {
        let people = [("boss", STANDARD), ("caller", SIP), ("agent", AGENT)];
        assert_eq!(place(&["identity=boss"], &["identity=nobody"], &people), [Left, Right, Right]);
    }

    #[test]
    fn who_comes_back_keeps_their_side() {
        assert_eq!(
            place(&[], &[], &[("a", STANDARD), ("b", STANDARD), ("b", STANDARD), ("a", SIP)]),
            [Left, Right, Right, Left]
        );
    }
}
