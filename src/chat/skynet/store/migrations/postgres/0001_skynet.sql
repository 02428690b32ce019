-- The twin of ../sqlite/0001_skynet.sql, which says what is what: BYTEA here is BLOB there, and nothing else differs.
CREATE TABLE counter (
    name  VARCHAR(16) NOT NULL PRIMARY KEY,
    value BIGINT      NOT NULL
);
INSERT INTO counter (name, value) VALUES ('message', 0);

-- Until its name is confirmed, an account keeps what its first password update will say, sealed.
CREATE TABLE account (
    id            BIGINT NOT NULL PRIMARY KEY,
    password_hash BYTEA  NOT NULL,
    first_key     BYTEA  NOT NULL,
    created_ms    BIGINT NOT NULL,
    deleted_ms    BIGINT NOT NULL
);

-- Names, in lower case. The role says what confirming does: 'initial' makes the account usable, 'change' gives it this name.
-- An 'alias' is the name before, good for logging in until the password follows the name.
CREATE TABLE mail_address (
    address      VARCHAR(255) NOT NULL PRIMARY KEY,
    account_id   BIGINT       NOT NULL,
    token        VARCHAR(32)  NOT NULL UNIQUE,
    role         VARCHAR(8)   NOT NULL CHECK (role IN ('initial', 'change', 'alias')),
    created_ms   BIGINT       NOT NULL,
    confirmed_ms BIGINT       NOT NULL
);
CREATE INDEX mail_address_by_account ON mail_address (account_id);

CREATE TABLE session (
    id                BIGINT       NOT NULL PRIMARY KEY,
    account_id        BIGINT       NOT NULL,
    token_hash        BYTEA        NOT NULL,
    web_token_hash    BYTEA        NOT NULL UNIQUE,
    application       VARCHAR(255) NOT NULL,
    created_ms        BIGINT       NOT NULL,
    last_connected_ms BIGINT       NOT NULL,
    last_version      BIGINT       NOT NULL,
    push_token        TEXT         NOT NULL,
    last_push_ms      BIGINT       NOT NULL
);
CREATE INDEX session_by_account ON session (account_id);

-- A direct channel has its two accounts, the lower first, in (low, high); of others these are NULL.
CREATE TABLE channel (
    id             BIGINT NOT NULL PRIMARY KEY,
    type           BIGINT NOT NULL,
    owner_id       BIGINT NOT NULL,
    counterpart_id BIGINT NOT NULL,
    low            BIGINT,
    high           BIGINT,
    created_ms     BIGINT NOT NULL,
    archive        BIGINT NOT NULL,
    revision       BIGINT NOT NULL
);
CREATE UNIQUE INDEX channel_by_pair ON channel (low, high);
CREATE INDEX channel_by_owner ON channel (owner_id, type);

CREATE TABLE channel_member (
    channel_id BIGINT NOT NULL,
    account_id BIGINT NOT NULL,
    flags      BIGINT NOT NULL,
    joined_at  BIGINT NOT NULL,
    PRIMARY KEY (channel_id, account_id)
);
CREATE INDEX channel_member_by_account ON channel_member (account_id);

-- Numbers come from the counter and are never used again. An audience of 1 is the channel's administrators alone.
CREATE TABLE message (
    id            BIGINT NOT NULL PRIMARY KEY,
    channel_id    BIGINT NOT NULL,
    sender_id     BIGINT NOT NULL,
    kind          BIGINT NOT NULL,
    version       BIGINT NOT NULL,
    flags         BIGINT NOT NULL,
    audience      BIGINT NOT NULL,
    file_id       BIGINT NOT NULL,
    dispatched_ms BIGINT NOT NULL,
    content       BYTEA  NOT NULL
);
CREATE INDEX message_by_channel ON message (channel_id, id);
CREATE INDEX message_by_kind ON message (channel_id, kind, id);

CREATE TABLE dependency (
    message_id BIGINT NOT NULL,
    position   BIGINT NOT NULL,
    account_id BIGINT NOT NULL,
    target_id  BIGINT NOT NULL,
    PRIMARY KEY (message_id, position)
);

CREATE TABLE blocked_account (
    owner_id BIGINT NOT NULL,
    blocked  BIGINT NOT NULL,
    PRIMARY KEY (owner_id, blocked)
);
CREATE TABLE blocked_channel (
    owner_id BIGINT NOT NULL,
    blocked  BIGINT NOT NULL,
    PRIMARY KEY (owner_id, blocked)
);
