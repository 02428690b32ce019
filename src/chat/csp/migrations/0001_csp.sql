-- Portable between SQLite and PostgreSQL but for BLOB (there BYTEA): no rowids, no AUTOINCREMENT, no datatypes of one
-- engine only. 64-bit numbers of the protocol are kept as the signed number with the same bits.

CREATE TABLE directory (
    identity     VARCHAR(8)  NOT NULL PRIMARY KEY,
    public_key   BLOB        NOT NULL,
    server_group VARCHAR(64) NOT NULL,
    state        VARCHAR(8)  NOT NULL CHECK (state IN ('active', 'revoked'))
);

-- The message comes last, so that reading the other columns of a long queue does not read the messages.
CREATE TABLE queue (
    seq        BIGINT     NOT NULL PRIMARY KEY,
    receiver   VARCHAR(8) NOT NULL,
    sender     VARCHAR(8) NOT NULL,
    message_id BIGINT     NOT NULL,
    flags      BIGINT     NOT NULL,
    len        BIGINT     NOT NULL,
    expires_ms BIGINT     NOT NULL,
    message    BLOB       NOT NULL
);
CREATE INDEX queue_by_receiver ON queue (receiver, seq);
CREATE INDEX queue_by_expiry ON queue (expires_ms);

CREATE TABLE device_cookie (
    identity VARCHAR(8) NOT NULL PRIMARY KEY,
    cookie   BLOB       NOT NULL,
    changed  BIGINT     NOT NULL
);

-- The device is 16 hexadecimal digits, or empty for an account with one device.
CREATE TABLE push_token (
    identity VARCHAR(8)  NOT NULL,
    device   VARCHAR(16) NOT NULL,
    voip     BIGINT      NOT NULL,
    kind     BIGINT      NOT NULL,
    token    BLOB        NOT NULL,
    PRIMARY KEY (identity, device, voip)
);
