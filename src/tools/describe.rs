//! Payloads as fields with names: a table for reading, a line for following, JSON for programs.

use std::fmt::Write as _;
use std::time::{Duration, UNIX_EPOCH};

use bytes::Bytes;
use serde_json::{Value, json};

use crate::client::GroupKey;
use crate::crypto::boxes::BadBox;
use crate::wire::d2m::{
    BadContainer, ClientUrlInfo, CloseCode, ConnectionState, FromDevice, PayloadType, Reconnect, SlotExpiration,
    SlotState, SlotsExhausted, ToDevice, TransactionHolder, Unknown,
};

/// Bytes of a field that a table shows; JSON has all of them.
const BYTES_SHOWN: usize = 96;
/// Characters of a text that a line shows.
const LINE_TEXT_SHOWN: usize = 60;

/// Who said it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum From {
    /// A device, to the mediator.
    Device,
    /// The mediator, to a device.
    Mediator,
}

/// Something with a name and fields. Shows what it was made to show when it is asked for a table, a line or JSON, and nothing of
/// it in [`Debug`](std::fmt::Debug).
#[derive(Clone, PartialEq)]
pub struct Described {
    /// What it is.
    pub title: String,
    fields: Vec<Field>,
}

#[derive(Clone, PartialEq)]
struct Field {
    name: String,
    /// What a program gets.
    value: Value,
    /// What a person gets.
    shown: String,
    /// Its name in a line; none when a line has no room for it.
    label: Option<String>,
}

/// Describes a container. Without `from` the payload type tells who said it; proxied bytes may be anybody's.
///
/// # Errors
/// [`BadContainer`] when it is none.
pub fn container(bytes: &Bytes, from: Option<From>, key: Option<&GroupKey>) -> Result<Described, BadContainer> {
    let from_device = || FromDevice::decode(bytes).map(|payload| of_device(&payload, key));
    let from_mediator = || ToDevice::decode(bytes).map(|payload| of_mediator(&payload, key));
    let mut described = match from {
        Some(From::Device) => from_device()?,
        Some(From::Mediator) => from_mediator()?,
        None => match FromDevice::decode(bytes)? {
            FromDevice::Unknown(_) => from_mediator()?,
            payload => of_device(&payload, key),
        },
    };
    if let Some([kind, reserved @ ..]) = bytes.first_chunk::<4>() {
        let reserved = hex::encode(reserved);
        let mut header = vec![
            Field::text("payload type", json!(kind), format!("0x{kind:02x} {}", PayloadType(*kind))),
            Field::text("reserved", json!(reserved), reserved.clone()),
        ];
        if let (PayloadType::REFLECT | PayloadType::REFLECTED, Some(length)) = (PayloadType(*kind), bytes.get(4)) {
            header.push(Field::text("header-length", json!(length), length.to_string()));
        }
        described.fields.splice(..0, header);
    }
    Ok(described)
}

/// Describes what a device said.
#[must_use]
pub fn of_device(payload: &FromDevice, key: Option<&GroupKey>) -> Described {
    let mut d = Described::new(payload.kind().to_string());
    match payload {
        FromDevice::Proxy(bytes) => d.bytes("bytes", bytes),
        FromDevice::ClientHello(hello) => {
            d.put("version", json!(0));
            d.quiet_bytes("response nonce", hello.response.get(..24).unwrap_or_default());
            d.quiet_bytes("response box", hello.response.get(24..).unwrap_or_default());
            d.put("device", json!(hello.device_id.to_string()));
            let exhausted = match hello.slots_exhausted {
                SlotsExhausted::Reject => "REJECT",
                SlotsExhausted::DropLeastRecent => "DROP_LEAST_RECENT",
            };
            d.put("if slots are exhausted", json!(exhausted));
            d.put("slot expiration", json!(expiration(hello.slot_expiration)));
            d.put("expected slot state", json!(state(hello.expected_slot_state)));
            d.sealed(
                "device info",
                &hello.encrypted_device_info,
                key.map(|k| k.open_device_info(&hello.encrypted_device_info)),
            );
        }
        FromDevice::ClientHelloOfVersion(version) => d.put("version", json!(version)),
        FromDevice::DropDevice(id) => d.put("device", json!(id.to_string())),
        FromDevice::SetSharedDeviceData(data) => {
            d.sealed("shared device data", data, key.map(|k| k.open_shared_device_data(data)));
        }
        FromDevice::BeginTransaction(begin) => {
            d.sealed("scope", &begin.encrypted_scope, key.map(|k| k.open_scope(&begin.encrypted_scope)));
            let ttl = if begin.ttl_s == 0 { "the mediator's maximum".to_owned() } else { format!("{} s", begin.ttl_s) };
            d.fields.push(Field::text("ttl", json!(begin.ttl_s), ttl));
        }
        FromDevice::Reflect(reflect) => {
            d.put("ephemeral", json!(reflect.flags.ephemeral));
            d.put("reflect-id", json!(reflect.reflect_id.0));
            let envelope = reflect.envelope.as_bytes();
            d.sealed("envelope", envelope, key.map(|k| k.open_envelope(envelope)));
        }
        FromDevice::ReflectedAck(id) => d.put("reflected-id", json!(id.0)),
        FromDevice::Unknown(unknown) => d.unknown(*unknown),
        FromDevice::GetDevicesInfo | FromDevice::CommitTransaction => {}
    }
    d
}

/// Describes what a mediator said.
#[must_use]
pub fn of_mediator(payload: &ToDevice, key: Option<&GroupKey>) -> Described {
    let mut d = Described::new(payload.kind().to_string());
    match payload {
        ToDevice::Proxy(bytes) => d.bytes("bytes", bytes),
        ToDevice::ServerHello(hello) => {
            d.put("version", json!(hello.version));
            d.quiet_bytes("ephemeral server key", &hello.esk);
            d.quiet_bytes("challenge", &hello.challenge);
        }
        ToDevice::ServerInfo(info) => {
            d.put("slots", json!(info.max_device_slots));
            d.put("slot state", json!(state(info.slot_state)));
            d.put("queued", json!(info.reflection_queue_length));
            d.time("time", info.current_time_ms);
            let data = &info.encrypted_shared_device_data;
            d.sealed("shared device data", data, key.map(|k| k.open_shared_device_data(data)));
        }
        ToDevice::DevicesInfo(devices) => {
            d.put("devices", json!(devices.0.len()));
            for (id, info) in &devices.0 {
                let here = match info.connection {
                    ConnectionState::ConnectedSince(_) => "connected",
                    ConnectionState::LastDisconnectAt(_) => "away",
                };
                d.put(&format!("{id}"), json!(format!("{}/{here}", expiration(info.slot_expiration))));
                match info.connection {
                    ConnectionState::ConnectedSince(ms) => d.time("  connected since", ms),
                    ConnectionState::LastDisconnectAt(ms) => d.time("  disconnected at", ms),
                }
                let sealed = &info.encrypted_device_info;
                d.sealed("  device info", sealed, key.map(|k| k.open_device_info(sealed)));
            }
        }
        ToDevice::DropDeviceAck(id) => d.put("device", json!(id.to_string())),
        ToDevice::TransactionRejected(holder) | ToDevice::TransactionEnded(holder) => d.holder(holder, key),
        ToDevice::ReflectAck(ack) => {
            d.put("reflect-id", json!(ack.reflect_id.0));
            d.time("time", ack.timestamp_ms);
        }
        ToDevice::Reflected(reflected) => {
            d.put("ephemeral", json!(reflected.flags().ephemeral));
            d.put("reflected-id", json!(reflected.id().0));
            d.time("time", reflected.timestamp_ms());
            d.sealed("envelope", reflected.envelope(), key.map(|k| k.open_envelope(reflected.envelope())));
        }
        ToDevice::Unknown(unknown) => d.unknown(*unknown),
        ToDevice::ReflectionQueueDry
        | ToDevice::RolePromotedToLeader
        | ToDevice::BeginTransactionAck
        | ToDevice::CommitTransactionAck => {}
    }
    d
}

/// Describes what a URL says.
#[must_use]
pub fn url(info: &ClientUrlInfo) -> Described {
    let mut d = Described::new("client-url-info".to_owned());
    d.bytes("device group", info.device_group_id.as_bytes());
    d.put("group in log lines", json!(info.device_group_id.to_string()));
    d.put("server group", json!(info.server_group.as_str()));
    d
}

/// Describes a close code.
#[must_use]
pub fn close_code(code: u16) -> Described {
    let mut d = Described::new(format!("close code {code}"));
    d.put("meaning", json!(CloseCode::from_code(code).map_or("not a code of this protocol", CloseCode::meaning)));
    let reconnect = match Reconnect::after(code) {
        Reconnect::Automatic => "the device may reconnect by itself",
        Reconnect::UserInteraction => "a person has to decide before the device reconnects",
        Reconnect::WithWarning => "the device may reconnect, with a warning",
    };
    d.put("then", json!(reconnect));
    d
}

const fn state(state: SlotState) -> &'static str {
    match state {
        SlotState::New => "NEW",
        SlotState::Existing => "EXISTING",
    }
}

const fn expiration(policy: SlotExpiration) -> &'static str {
    match policy {
        SlotExpiration::Volatile => "VOLATILE",
        SlotExpiration::Persistent => "PERSISTENT",
    }
}

impl Field {
    fn text(name: &str, value: Value, shown: String) -> Self {
        Self { name: name.to_owned(), value, shown, label: Some(name.trim().replace(' ', "-")) }
    }
}

impl std::fmt::Debug for Described {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Described({}, {} fields)", self.title, self.fields.len())
    }
}

impl Described {
    const fn new(title: String) -> Self {
        Self { title, fields: Vec::new() }
    }

    fn put(&mut self, name: &str, value: Value) {
        let shown = value.as_str().map_or_else(|| value.to_string(), str::to_owned);
        self.fields.push(Field::text(name, value, shown));
    }

    fn bytes(&mut self, name: &str, bytes: &[u8]) {
        let head = hex::encode(bytes.get(..BYTES_SHOWN).unwrap_or(bytes));
        let more = if bytes.len() > BYTES_SHOWN { "…" } else { "" };
        let shown = format!("{head}{more} ({} bytes)", bytes.len());
        self.fields.push(Field::text(name, json!(hex::encode(bytes)), shown.trim_start().to_owned()));
    }

    fn quiet_bytes(&mut self, name: &str, bytes: &[u8]) {
        self.bytes(name, bytes);
        if let Some(field) = self.fields.last_mut() {
            field.label = None;
        }
    }

    /// Sealed bytes and, for who has the key, what they hold.
    fn sealed(&mut self, name: &str, sealed: &[u8], opened: Option<Result<Vec<u8>, BadBox>>) {
        match opened {
            Some(_) if sealed.is_empty() => self.bytes(name, sealed),
            Some(Ok(plain)) => {
                self.quiet_bytes(name, sealed);
                let indent = if name.starts_with(' ') { "    " } else { "  " };
                match std::str::from_utf8(&plain) {
                    Ok(text) if !text.chars().any(char::is_control) => {
                        self.put(&format!("{indent}opened"), json!(text))
                    }
                    _ => self.bytes(&format!("{indent}opened"), &plain),
                }
                // A line shows what it holds under the name of what was sealed.
                if let Some(field) = self.fields.last_mut() {
                    field.label = Some(name.trim().replace(' ', "-"));
                }
            }
            Some(Err(BadBox)) => {
                self.bytes(name, sealed);
                self.put("  opened", json!("not with this group key"));
            }
            None => self.bytes(name, sealed),
        }
    }

    fn time(&mut self, name: &str, ms: u64) {
        // Later times have no notation.
        const YEAR_9999_MS: u64 = 253_402_300_799_999;
        let shown = if ms <= YEAR_9999_MS {
            format!("{ms} ({})", humantime::format_rfc3339_millis(UNIX_EPOCH + Duration::from_millis(ms)))
        } else {
            ms.to_string()
        };
        self.fields.push(Field { label: None, ..Field::text(name, json!(ms), shown) });
    }

    /// Says of a frame that the rest of it was not recorded.
    pub fn not_kept(&mut self, bytes: u64) {
        self.fields.retain(|field| field.name != "bytes");
        self.fields.push(Field::text("not recorded", json!(bytes), format!("{bytes} bytes")));
    }

    /// Names and values of the fields, in the order of the layout.
    pub fn values(&self) -> impl Iterator<Item = (&str, &Value)> {
        self.fields.iter().map(|field| (field.name.trim(), &field.value))
    }

    fn holder(&mut self, holder: &TransactionHolder, key: Option<&GroupKey>) {
        self.put("device", json!(holder.device_id.to_string()));
        let scope = &holder.encrypted_scope;
        self.sealed("scope", scope, key.map(|k| k.open_scope(scope)));
    }

    fn unknown(&mut self, unknown: Unknown) {
        self.put("payload bytes", json!(unknown.len));
        let why =
            if unknown.kind.name().is_some() { "only the other side may send it" } else { "no such payload type" };
        self.put("unexpected", json!(why));
    }

    /// One line with what matters.
    #[must_use]
    pub fn line(&self) -> String {
        let mut line = self.title.clone();
        for field in &self.fields {
            let Some(label) = &field.label else { continue };
            let short: String = field.shown.chars().take(LINE_TEXT_SHOWN).collect();
            let more = if short.len() < field.shown.len() { "…" } else { "" };
            // Writing to a String does not fail.
            let _infallible = write!(line, "  {label}={short}{more}");
        }
        line
    }

    /// Every field in a line of its own.
    #[must_use]
    pub fn table(&self) -> String {
        let width = self.fields.iter().map(|field| field.name.chars().count()).max().unwrap_or_default();
        let mut table = format!("{}\n", self.title);
        for field in &self.fields {
            let _infallible = writeln!(table, "  {:width$}  {}", field.name, field.shown);
        }
        table
    }

    /// Every field in the order of the layout, bytes as hex.
    #[must_use]
    pub fn json(&self) -> Value {
        let fields = self.fields.iter().map(|field| json!({ "name": field.name.trim(), "value": field.value }));
        json!({ "what": self.title, "fields": fields.collect::<Vec<_>>() })
    }
}
