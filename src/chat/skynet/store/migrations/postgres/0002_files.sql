-- The twin of ../sqlite/0002_files.sql: BYTEA here is BLOB there, and nothing else differs.

-- Files beside the messages; their bytes are in a directory, by their ids. The state: 0 is still coming, 1 is whole, 2 is to be
-- removed from the disk. Of one that is coming, the length is what is set aside for it, and there is no checksum (SHA-256) yet.
CREATE TABLE file (
    id            BIGINT NOT NULL PRIMARY KEY,
    owner_id      BIGINT NOT NULL,
    state         BIGINT NOT NULL,
    length        BIGINT NOT NULL,
    checksum      BYTEA  NOT NULL,
    created_ms    BIGINT NOT NULL,
    referenced_ms BIGINT NOT NULL
);
CREATE INDEX file_by_owner ON file (owner_id, state);
CREATE INDEX file_by_state ON file (state, created_ms);

-- A message that names a file is the reference to it.
CREATE INDEX message_by_file ON message (file_id) WHERE file_id <> 0;
