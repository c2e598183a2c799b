-- {key} is the backend's own word for a row number that is given once and never again.
-- Times are microseconds since 1970 in UTC; flags are 0 or 1; lists and objects are JSON.

CREATE TABLE recordings (
    id               {key},
    recording_id     TEXT NOT NULL UNIQUE,
    egress_id        TEXT,
    room_name        TEXT NOT NULL,
    room_id          TEXT NOT NULL,
    status           TEXT NOT NULL,
    outcome          TEXT,
    reasons          TEXT NOT NULL,
    engine           TEXT NOT NULL,
    rule             TEXT,
    created_at       BIGINT NOT NULL,
    started_at       BIGINT,
    ended_at         BIGINT,
    ready_at         BIGINT,
    updated_at       BIGINT NOT NULL,
    duration_seconds DOUBLE PRECISION NOT NULL,
    outputs          TEXT NOT NULL,
    objects          TEXT NOT NULL,
    manifest         TEXT,
    file_url         TEXT,
    file_size_bytes  BIGINT NOT NULL,
    file_format      TEXT NOT NULL,
    storage_provider TEXT NOT NULL,
    storage_bucket   TEXT,
    storage_key      TEXT,
    is_processed     BIGINT NOT NULL,
    thumbnail_url    TEXT,
    metadata         TEXT NOT NULL,
    retention_until  BIGINT,
    legal_hold       BIGINT NOT NULL,
    config           TEXT NOT NULL,
    owner            TEXT,
    owner_until      BIGINT,
    deleted_at       BIGINT,
    deleted_by       TEXT,
    deleted_why      TEXT,
    erased_at        BIGINT
);

-- One recording a room, whoever asks for it. One that only finishes its files does not keep the next call waiting.
CREATE UNIQUE INDEX recordings_one_a_room ON recordings (room_name)
    WHERE status IN ('starting', 'active', 'paused') AND deleted_at IS NULL;
CREATE INDEX recordings_newest ON recordings (created_at, id);
CREATE INDEX recordings_room ON recordings (room_name, created_at);
CREATE INDEX recordings_room_id ON recordings (room_id);
CREATE INDEX recordings_egress ON recordings (egress_id) WHERE egress_id IS NOT NULL;
CREATE INDEX recordings_unfinished ON recordings (status)
    WHERE status IN ('starting', 'active', 'paused', 'stopping');
CREATE INDEX recordings_expiry ON recordings (retention_until)
    WHERE retention_until IS NOT NULL AND deleted_at IS NULL;
CREATE INDEX recordings_erasure ON recordings (deleted_at) WHERE deleted_at IS NOT NULL AND erased_at IS NULL;

CREATE TABLE participants (
    recording_id TEXT NOT NULL REFERENCES recordings (recording_id),
    identity     TEXT NOT NULL,
    name         TEXT NOT NULL,
    kind         TEXT NOT NULL,
    PRIMARY KEY (recording_id, identity)
);
CREATE INDEX participants_identity ON participants (identity);

CREATE TABLE notices (
    id            TEXT NOT NULL PRIMARY KEY,
    once          TEXT NOT NULL UNIQUE,
    event         TEXT NOT NULL,
    recording_id  TEXT NOT NULL,
    endpoint      TEXT NOT NULL,
    body          TEXT NOT NULL,
    state         TEXT NOT NULL,
    attempts      BIGINT NOT NULL,
    created_at    BIGINT NOT NULL,
    tried_since   BIGINT NOT NULL,
    next_at       BIGINT NOT NULL,
    claimed_until BIGINT NOT NULL,
    claim         TEXT,
    ended_at      BIGINT,
    last_status   BIGINT,
    last_error    TEXT
);
CREATE INDEX notices_due ON notices (next_at) WHERE state = 'pending';
CREATE INDEX notices_listed ON notices (created_at, id);
CREATE INDEX notices_recording ON notices (recording_id);

CREATE TABLE api_keys (
    id           TEXT NOT NULL PRIMARY KEY,
    name         TEXT NOT NULL,
    hash         TEXT NOT NULL UNIQUE,
    scopes       TEXT NOT NULL,
    created_at   BIGINT NOT NULL,
    expires_at   BIGINT,
    revoked_at   BIGINT,
    last_used_at BIGINT
);

CREATE TABLE accesses (
    id           {key},
    at           BIGINT NOT NULL,
    recording_id TEXT NOT NULL,
    who          TEXT NOT NULL,
    action       TEXT NOT NULL,
    remote       TEXT,
    status       BIGINT NOT NULL
);
CREATE INDEX accesses_recording ON accesses (recording_id, id);
CREATE INDEX accesses_at ON accesses (at);

CREATE TABLE idempotency (
    caller        TEXT NOT NULL,
    key           TEXT NOT NULL,
    request       TEXT NOT NULL,
    status        BIGINT,
    body          TEXT,
    claimed_until BIGINT NOT NULL,
    expires_at    BIGINT NOT NULL,
    PRIMARY KEY (caller, key)
);
CREATE INDEX idempotency_expiry ON idempotency (expires_at);

CREATE TABLE webhooks_seen (
    id         TEXT NOT NULL PRIMARY KEY,
    expires_at BIGINT NOT NULL
);
CREATE INDEX webhooks_seen_expiry ON webhooks_seen (expires_at);

CREATE TABLE leases (
    name   TEXT NOT NULL PRIMARY KEY,
    holder TEXT NOT NULL,
    until  BIGINT NOT NULL
);
