-- What a hub of Tox groups keeps. 64-bit numbers are kept as the signed number with the same bits.

CREATE TABLE groups (
    id         BLOB    NOT NULL PRIMARY KEY,
    -- 0: classic, 1: signed.
    mode       BIGINT  NOT NULL CHECK (mode IN (0, 1)),
    name       TEXT    NOT NULL,
    secret     BLOB    NOT NULL,
    -- What the hub signs with: the founder's seed, where the group was made here.
    seed       BLOB,
    topic      BLOB    NOT NULL,
    -- Of a classic group: whether only the hub's topic counts.
    topic_lock BIGINT  NOT NULL,
    created_ms BIGINT  NOT NULL
);

-- Up to which number a member of ours may count. A number that was used is never used again.
CREATE TABLE counters (
    client BLOB   NOT NULL PRIMARY KEY,
    bound  BIGINT NOT NULL
);

CREATE TABLE members (
    grp     BLOB   NOT NULL,
    client  BLOB   NOT NULL,
    name    TEXT   NOT NULL,
    address TEXT,
    seen_ms BIGINT NOT NULL,
    PRIMARY KEY (grp, client)
);
CREATE INDEX members_by_time ON members (grp, seen_ms);

CREATE TABLE records (
    grp   BLOB   NOT NULL,
    kind  BIGINT NOT NULL,
    -- Whose: a member; of a sanction its target and its issuer; nothing where there is one of a kind.
    key   BLOB   NOT NULL,
    bytes BLOB   NOT NULL,
    PRIMARY KEY (grp, kind, key)
);

CREATE TABLE bans (
    grp    BLOB   NOT NULL,
    client BLOB   NOT NULL,
    at_ms  BIGINT NOT NULL,
    PRIMARY KEY (grp, client)
);

CREATE TABLE tombstones (
    grp      BLOB   NOT NULL,
    client   BLOB   NOT NULL,
    -- Until when that is remembered, and until when they are not believed to be here.
    until_ms BIGINT NOT NULL,
    dead_until_ms BIGINT NOT NULL,
    PRIMARY KEY (grp, client)
);

-- Of the secret only its hash.
CREATE TABLE tokens (
    grp       BLOB   NOT NULL,
    id        BLOB   NOT NULL,
    hash      BLOB   NOT NULL,
    expires_s BIGINT NOT NULL,
    uses      BIGINT NOT NULL,
    PRIMARY KEY (grp, id)
);

CREATE TABLE lines (
    seq    INTEGER NOT NULL PRIMARY KEY,
    grp    BLOB    NOT NULL,
    at_ms  BIGINT  NOT NULL,
    client BLOB    NOT NULL,
    name   TEXT    NOT NULL,
    text   TEXT    NOT NULL,
    action BIGINT  NOT NULL
);
CREATE INDEX lines_by_group ON lines (grp, seq);

-- Thin users, and the members that speak for them.
CREATE TABLE users (
    name TEXT NOT NULL PRIMARY KEY,
    hash BLOB NOT NULL
);

CREATE TABLE virtuals (
    user     TEXT   NOT NULL,
    grp      BLOB   NOT NULL,
    secret   BLOB   NOT NULL,
    seed     BLOB,
    name     TEXT   NOT NULL,
    -- Whether they made the group, and act with the hub's right.
    operator BIGINT NOT NULL,
    PRIMARY KEY (user, grp)
);
