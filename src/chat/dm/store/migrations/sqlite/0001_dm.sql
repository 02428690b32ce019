-- The twin of ../postgres/0001_dm.sql, where BLOB is BYTEA and the numbers of rows are identities; nothing else differs.
-- Numbers of rows are never given twice. Times are microseconds since the Unix epoch; bytes that are not there are empty.

-- username_key: what two names share that look the same.
CREATE TABLE users (
    id              INTEGER      PRIMARY KEY AUTOINCREMENT,
    username        VARCHAR(256) NOT NULL UNIQUE,
    username_key    VARCHAR(2048) NOT NULL UNIQUE,
    public_key      BLOB         NOT NULL,
    spk             BLOB         NOT NULL,
    spk_sig         BLOB         NOT NULL,
    status          VARCHAR(8)   NOT NULL CHECK (status IN ('online', 'away', 'dnd', 'offline')),
    biography       TEXT         NOT NULL,
    profile_picture TEXT         NOT NULL,
    own_storage     TEXT         NOT NULL,
    created_at      BIGINT       NOT NULL,
    CHECK ((LENGTH(spk) = 0) = (LENGTH(spk_sig) = 0))
);

CREATE TABLE friendships (
    a_id  BIGINT NOT NULL REFERENCES users (id),
    b_id  BIGINT NOT NULL REFERENCES users (id),
    since BIGINT NOT NULL,
    PRIMARY KEY (a_id, b_id),
    CHECK (a_id < b_id)
);
CREATE INDEX friendships_by_b ON friendships (b_id);

CREATE TABLE friend_requests (
    id         INTEGER PRIMARY KEY AUTOINCREMENT,
    from_id    BIGINT  NOT NULL REFERENCES users (id),
    to_id      BIGINT  NOT NULL REFERENCES users (id),
    created_at BIGINT  NOT NULL,
    UNIQUE (from_id, to_id),
    CHECK (from_id <> to_id)
);
CREATE INDEX friend_requests_by_to ON friend_requests (to_id);

CREATE TABLE blocks (
    from_id    BIGINT NOT NULL REFERENCES users (id),
    to_id      BIGINT NOT NULL REFERENCES users (id),
    created_at BIGINT NOT NULL,
    PRIMARY KEY (from_id, to_id),
    CHECK (from_id <> to_id)
);
CREATE INDEX blocks_by_to ON blocks (to_id);

-- What kind it is was fixed when it was made. The pair of a pair DM is there as long as both are members.
CREATE TABLE dms (
    id         INTEGER    PRIMARY KEY AUTOINCREMENT,
    kind       VARCHAR(5) NOT NULL CHECK (kind IN ('pair', 'group')),
    pair_low   BIGINT,
    pair_high  BIGINT,
    name       TEXT       NOT NULL,
    created_by BIGINT     NOT NULL REFERENCES users (id),
    created_at BIGINT     NOT NULL,
    key_tree   BLOB       NOT NULL,
    UNIQUE (pair_low, pair_high)
);

CREATE TABLE dm_members (
    dm_id    BIGINT NOT NULL REFERENCES dms (id) ON DELETE CASCADE,
    user_id  BIGINT NOT NULL REFERENCES users (id),
    position BIGINT NOT NULL,
    left_at  BIGINT,
    PRIMARY KEY (dm_id, user_id),
    UNIQUE (dm_id, position)
);
CREATE INDEX dm_members_by_user ON dm_members (user_id) WHERE left_at IS NULL;

-- Within a DM no two were sent at the same time, so that a time is a place in its history.
CREATE TABLE messages (
    id        INTEGER PRIMARY KEY AUTOINCREMENT,
    dm_id     BIGINT  NOT NULL REFERENCES dms (id) ON DELETE CASCADE,
    sender_id BIGINT  NOT NULL REFERENCES users (id),
    body      BLOB    NOT NULL,
    signature BLOB    NOT NULL,
    sent_at   BIGINT  NOT NULL,
    delete_at BIGINT,
    pinned    BIGINT  NOT NULL,
    UNIQUE (dm_id, sent_at)
);
CREATE INDEX messages_by_end ON messages (delete_at) WHERE delete_at IS NOT NULL;
CREATE INDEX messages_pinned ON messages (dm_id) WHERE pinned = 1;

CREATE TABLE reactions (
    id         INTEGER PRIMARY KEY AUTOINCREMENT,
    message_id BIGINT  NOT NULL REFERENCES messages (id) ON DELETE CASCADE,
    sender_id  BIGINT  NOT NULL REFERENCES users (id),
    body       BLOB    NOT NULL,
    signature  BLOB    NOT NULL,
    created_at BIGINT  NOT NULL
);
CREATE INDEX reactions_by_message ON reactions (message_id);

-- soon_at: when its author is warned; not there when there is no warning, or it was sent. soon_missed: nobody heard it.
CREATE TABLE schedules (
    id             INTEGER PRIMARY KEY AUTOINCREMENT,
    dm_id          BIGINT  NOT NULL REFERENCES dms (id) ON DELETE CASCADE,
    sender_id      BIGINT  NOT NULL REFERENCES users (id),
    body           BLOB    NOT NULL,
    signature      BLOB    NOT NULL,
    due_at         BIGINT  NOT NULL,
    delete_after_s BIGINT  NOT NULL,
    soon_at        BIGINT,
    soon_missed    BIGINT  NOT NULL
);
CREATE INDEX schedules_by_due ON schedules (due_at);
CREATE INDEX schedules_by_soon ON schedules (soon_at) WHERE soon_at IS NOT NULL;
CREATE INDEX schedules_by_sender ON schedules (sender_id, dm_id);

CREATE TABLE x3dh_inbox (
    id         INTEGER PRIMARY KEY AUTOINCREMENT,
    user_id    BIGINT  NOT NULL REFERENCES users (id),
    dm_id      BIGINT  NOT NULL REFERENCES dms (id) ON DELETE CASCADE,
    sender_id  BIGINT  NOT NULL REFERENCES users (id),
    sender_ik  BLOB    NOT NULL,
    spk        BLOB    NOT NULL,
    ek         BLOB    NOT NULL,
    position   BIGINT  NOT NULL,
    setup_sig  BLOB    NOT NULL,
    created_at BIGINT  NOT NULL,
    UNIQUE (user_id, dm_id)
);
CREATE INDEX x3dh_inbox_by_dm ON x3dh_inbox (dm_id);
