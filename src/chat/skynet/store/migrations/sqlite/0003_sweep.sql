-- The sweep looks for these every ten minutes, and nobody is served meanwhile.
CREATE INDEX message_daystream ON message (dispatched_ms) WHERE kind = 36;
CREATE INDEX mail_address_unconfirmed ON mail_address (created_ms) WHERE confirmed_ms = 0;
CREATE INDEX session_away ON session (last_connected_ms);
CREATE INDEX message_online ON message (channel_id) WHERE kind = 43;
