//! From two strangers to a session (spec 2): a type per state, for either role. No sockets and no dice: ephemeral keys
//! and cookies are handed in.
//!
//! ```text
//! client                                                server
//! AwaitServerHello::start  -- client-hello, 48 -->      AwaitLogin::answer
//! AwaitServerHello::login  <-- server-hello, 80 --
//!                          -- login, 144 + n -->        AwaitLogin::open -> LoginData::claim -> Claim::verify
//! AwaitLoginAck::finish    <-- login-ack, 32 --         Verified::accept
//! ```
//!
//! The server looks the identity up between `claim` and `verify`: only who has the permanent key becomes [`Verified`].

use super::frame::{Opener, Sealer, Session};
use super::{CspDeviceId, Identity, WireIdentity, cut};
use crate::crypto::boxes::{self, BadBox, LowOrder, Public, TAG};
use crate::crypto::{Secret, equal, kdf};
use crate::wire::bytes::{Reader, Truncated};
use crate::wire::csp::{LOGIN_ACK, SERVER_HELLO};

/// Length of the client-hello, in bytes.
pub const CLIENT_HELLO: usize = 48;
/// Length of the box that holds the login data, in bytes.
pub const LOGIN_BOX: usize = LOGIN_DATA + TAG;
/// Longest box with extensions, in bytes.
pub const EXTENSIONS_MAX: usize = 8_192;
/// Stands where old clients have their client info, and is followed by the length of the extensions box.
pub const EXTENSION_MAGIC: &[u8; 30] = b"threema-clever-extension-field";

const LOGIN_DATA: usize = 128;
const LOGIN_ACK_DATA: usize = LOGIN_ACK - TAG;
const COOKIE: usize = 16;

/// Why a handshake ends. What the other side gets to see is always the same: nothing (spec 2.7).
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum HandshakeError {
    /// A public key agrees with nothing.
    #[error(transparent)]
    LowOrder(#[from] LowOrder),
    /// A box did not open: the other side has other keys.
    #[error(transparent)]
    BadBox(#[from] BadBox),
    /// Both sides have the same connection cookie.
    #[error("both connection cookies are the same")]
    SameCookie,
    /// The other side repeated another cookie than ours: a replay.
    #[error("the repeated connection cookie is not ours")]
    WrongCookie,
    /// The login data or the login-ack are not laid out as they should be.
    #[error("malformed login")]
    Malformed,
    /// The login uses the obsolete vouch.
    #[error("obsolete vouch format")]
    ObsoleteVouch,
    /// An extension is cut off or has a wrong length.
    #[error("malformed extensions")]
    BadExtensions,
    /// The client has not proved that it holds the identity's key.
    #[error("wrong vouch")]
    BadVouch,
}

impl From<Truncated> for HandshakeError {
    fn from(_: Truncated) -> Self {
        Self::Malformed
    }
}

/// Shared by an account's devices; another value says that somebody else used the account. Prints its length only.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct DeviceCookie(pub [u8; COOKIE]);

impl std::fmt::Debug for DeviceCookie {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("DeviceCookie(16 bytes)")
    }
}

/// What the client understands: a bit mask. The published text calls the byte a version, yet current clients send
/// 0x03: whoever takes it for an unknown version locks them out (spec C1).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Features(pub u8);

impl Features {
    /// Understands messages with a metadata box.
    pub const METADATA: Self = Self(0x01);
    /// Answers echo requests.
    pub const ECHO: Self = Self(0x02);

    /// Whether all bits of `features` are set.
    #[must_use]
    pub const fn has(self, features: Self) -> bool {
        self.0 & features.0 == features.0
    }
}

/// What a client tells about itself in the extensions box (spec 2.4).
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Extensions {
    /// What it understands.
    pub features: Option<Features>,
    /// `version;platform;language/country;...`, for the log.
    pub client_info: Option<String>,
    /// Which device of the account it is. Its presence makes this a multi-device connection.
    pub device_id: Option<CspDeviceId>,
    /// What it knows as the account's cookie.
    pub cookie: Option<DeviceCookie>,
}

impl Extensions {
    const CLIENT_INFO: u8 = 0x00;
    const DEVICE_ID: u8 = 0x01;
    const FEATURES: u8 = 0x02;
    const COOKIE: u8 = 0x03;

    /// Reads the concatenated extensions. Their order is free, the last one of a kind counts, unknown ones are skipped.
    ///
    /// # Errors
    /// [`HandshakeError::BadExtensions`] when one is cut off or has a wrong length.
    pub fn decode(bytes: &[u8]) -> Result<Self, HandshakeError> {
        Self::read(Reader::new(bytes)).map_err(|_| HandshakeError::BadExtensions)
    }

    fn read(mut r: Reader<'_>) -> Result<Self, HandshakeError> {
        let mut out = Self::default();
        while !r.is_empty() {
            let (kind, len) = (r.u8()?, r.u16()?);
            let payload = r.take(usize::from(len))?;
            let mut field = Reader::new(payload);
            match kind {
                Self::CLIENT_INFO => out.client_info = Some(String::from_utf8_lossy(field.take(payload.len())?).into()),
                Self::DEVICE_ID => out.device_id = Some(CspDeviceId(field.u64()?)),
                Self::FEATURES => out.features = Some(Features(field.u8()?)),
                Self::COOKIE => out.cookie = Some(DeviceCookie(field.array()?)),
                _ => continue,
            }
            if !field.is_empty() {
                return Err(HandshakeError::BadExtensions);
            }
        }
        Ok(out)
    }

    /// Writes them one behind the other. A client info of more than 4 KiB is cut off.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let mut out = Vec::new();
        let mut put = |kind: u8, payload: &[u8]| {
            out.push(kind);
            out.extend_from_slice(&u16::try_from(payload.len()).unwrap_or(u16::MAX).to_le_bytes());
            out.extend_from_slice(payload);
        };
        if let Some(features) = self.features {
            put(Self::FEATURES, &[features.0]);
        }
        if let Some(info) = &self.client_info {
            put(Self::CLIENT_INFO, cut(info, 4_096).as_bytes());
        }
        if let Some(device) = self.device_id {
            put(Self::DEVICE_ID, &device.0.to_le_bytes());
        }
        if let Some(cookie) = &self.cookie {
            put(Self::COOKIE, &cookie.0);
        }
        out
    }
}

/// How a client introduces itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Introduction {
    /// With extensions, as every current client does.
    Extensions(Extensions),
    /// As old clients do: the client info alone, at most 32 bytes.
    Legacy {
        /// `version;platform;language/country;...`, for the log.
        client_info: String,
    },
}

impl Introduction {
    /// What a multi-device connection is told by.
    #[must_use]
    pub const fn device_id(&self) -> Option<CspDeviceId> {
        match self {
            Self::Extensions(extensions) => extensions.device_id,
            Self::Legacy { .. } => None,
        }
    }

    /// What the client understands; nothing when it does not say.
    #[must_use]
    pub fn features(&self) -> Features {
        match self {
            Self::Extensions(extensions) => extensions.features.unwrap_or_default(),
            Self::Legacy { .. } => Features::default(),
        }
    }

    /// The cookie it presents.
    #[must_use]
    pub const fn cookie(&self) -> Option<DeviceCookie> {
        match self {
            Self::Extensions(extensions) => extensions.cookie,
            Self::Legacy { .. } => None,
        }
    }

    /// For the log.
    #[must_use]
    pub fn client_info(&self) -> &str {
        match self {
            Self::Extensions(extensions) => extensions.client_info.as_deref().unwrap_or_default(),
            Self::Legacy { client_info } => client_info,
        }
    }
}

/// What the server says when it lets a client in. Older texts know 16 reserved bytes here (spec 2.6).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LoginAck {
    /// The server's time, in milliseconds since the Unix epoch.
    pub time_ms: u64,
    /// How many messages are queued.
    pub queued: u32,
}

impl LoginAck {
    pub(super) fn encode(self) -> [u8; LOGIN_ACK_DATA] {
        let mut out = [0; LOGIN_ACK_DATA];
        let (_reserved, rest) = out.split_at_mut(4);
        let (time, queued) = rest.split_at_mut(8);
        time.copy_from_slice(&self.time_ms.to_le_bytes());
        queued.copy_from_slice(&self.queued.to_le_bytes());
        out
    }

    fn decode(bytes: &[u8]) -> Result<Self, HandshakeError> {
        let mut r = Reader::new(bytes);
        let _reserved = r.u32()?;
        Ok(Self { time_ms: r.u64()?, queued: r.u32()? })
    }
}

/// Server: has answered a client-hello.
#[derive(Debug)]
pub struct AwaitLogin {
    ephemeral: Secret<32>,
    client_ephemeral: Public,
    cookie: [u8; COOKIE],
    session: Session,
}

impl AwaitLogin {
    /// Reads a client-hello and makes the server-hello. `ephemeral` and `cookie` must be fresh.
    ///
    /// # Errors
    /// [`HandshakeError`] when the client's key is of low order or its cookie the same as ours.
    pub fn answer(
        server_key: &Secret<32>,
        hello: &[u8; CLIENT_HELLO],
        ephemeral: Secret<32>,
        cookie: [u8; COOKIE],
    ) -> Result<(Self, [u8; SERVER_HELLO]), HandshakeError> {
        let mut r = Reader::new(hello);
        let (client_ephemeral, client_cookie): (Public, [u8; COOKIE]) = (r.array()?, r.array()?);
        if client_cookie == cookie {
            return Err(HandshakeError::SameCookie);
        }
        let challenge = [&boxes::public(&ephemeral)[..], &client_cookie].concat();
        let boxed = Sealer::new(boxes::beforenm(server_key, &client_ephemeral)?, cookie, 1).seal(&challenge);
        let mut out = [0; SERVER_HELLO];
        let (head, tail) = out.split_at_mut(COOKIE);
        head.copy_from_slice(&cookie);
        tail.copy_from_slice(&boxed);
        let key = boxes::beforenm(&ephemeral, &client_ephemeral)?;
        let session =
            Session { sealer: Sealer::new(key.clone(), cookie, 2), opener: Opener::new(key, client_cookie, 1) };
        Ok((Self { ephemeral, client_ephemeral, cookie, session }, out))
    }

    /// Opens the first box of the login.
    ///
    /// # Errors
    /// [`HandshakeError`] when it does not open, or holds anything that is not allowed there.
    pub fn open(mut self, login: &[u8; LOGIN_BOX]) -> Result<LoginData, HandshakeError> {
        let plain = self.session.opener.open(login)?;
        let mut r = Reader::new(&plain);
        let identity = WireIdentity(r.array()?).valid();
        let info: [u8; 32] = r.array()?;
        let (cookie, reserved, vouch) = (r.array::<COOKIE>()?, r.array::<24>()?, Secret::new(r.array::<32>()?));
        if !equal(&cookie, &self.cookie) {
            return Err(HandshakeError::WrongCookie);
        }
        if reserved != [0; 24] {
            return Err(HandshakeError::ObsoleteVouch);
        }
        let (magic, len) = info.split_last_chunk::<2>().ok_or(HandshakeError::Malformed)?;
        let client_info = if magic == EXTENSION_MAGIC {
            let len = usize::from(u16::from_le_bytes(*len));
            if !(TAG..=EXTENSIONS_MAX).contains(&len) {
                return Err(HandshakeError::BadExtensions);
            }
            ClientInfo::InExtensions { len }
        } else {
            let end = info.iter().rposition(|byte| *byte != 0).map_or(0, |last| last + 1);
            ClientInfo::Here(String::from_utf8_lossy(info.get(..end).unwrap_or_default()).into())
        };
        let identity = identity.ok_or(HandshakeError::Malformed)?;
        Ok(LoginData { handshake: self, identity, vouch, client_info })
    }
}

#[derive(Debug)]
enum ClientInfo {
    Here(String),
    InExtensions { len: usize },
}

/// Server: has opened the first box of a login.
#[derive(Debug)]
pub struct LoginData {
    handshake: AwaitLogin,
    identity: Identity,
    vouch: Secret<32>,
    client_info: ClientInfo,
}

impl LoginData {
    /// How many bytes are to follow, for [`Self::claim`].
    #[must_use]
    pub const fn extensions_len(&self) -> usize {
        match self.client_info {
            ClientInfo::Here(_) => 0,
            ClientInfo::InExtensions { len } => len,
        }
    }

    /// Opens the second box, if one is announced.
    ///
    /// # Errors
    /// [`HandshakeError`] when it does not open or is malformed.
    pub fn claim(self, extensions: &[u8]) -> Result<Claim, HandshakeError> {
        let Self { mut handshake, identity, vouch, client_info } = self;
        let introduction = match client_info {
            ClientInfo::Here(client_info) => Introduction::Legacy { client_info },
            ClientInfo::InExtensions { .. } => {
                Introduction::Extensions(Extensions::decode(&handshake.session.opener.open(extensions)?)?)
            }
        };
        Ok(Claim { handshake, identity, vouch, introduction })
    }
}

/// Server: has read a whole login, and believes nothing of it yet.
#[derive(Debug)]
pub struct Claim {
    handshake: AwaitLogin,
    identity: Identity,
    vouch: Secret<32>,
    introduction: Introduction,
}

impl Claim {
    /// Who the client says it is.
    #[must_use]
    pub const fn identity(&self) -> Identity {
        self.identity
    }

    /// Checks the vouch against the public key the directory has for the identity (spec 2.5).
    ///
    /// # Errors
    /// [`HandshakeError::BadVouch`] when the client does not hold the identity's key.
    pub fn verify(self, server_key: &Secret<32>, client: &Public) -> Result<Verified, HandshakeError> {
        let Self { handshake, identity, vouch, introduction } = self;
        let permanent = boxes::beforenm(server_key, client)?;
        let ephemeral = boxes::beforenm(&handshake.ephemeral, client)?;
        // `Secret` compares in constant time.
        if kdf::csp_vouch(&permanent, &ephemeral, &handshake.cookie, &handshake.client_ephemeral) != vouch {
            return Err(HandshakeError::BadVouch);
        }
        Ok(Verified { identity, introduction, session: handshake.session })
    }
}

/// Server: the client holds the identity's permanent key.
#[derive(Debug)]
pub struct Verified {
    identity: Identity,
    introduction: Introduction,
    session: Session,
}

impl Verified {
    /// Who it is.
    #[must_use]
    pub const fn identity(&self) -> Identity {
        self.identity
    }

    /// What it told about itself.
    #[must_use]
    pub const fn introduction(&self) -> &Introduction {
        &self.introduction
    }

    /// Makes the login-ack, which is the last unit without a frame.
    #[must_use]
    pub fn accept(self, ack: LoginAck) -> (Session, [u8; LOGIN_ACK]) {
        let mut session = self.session;
        let mut out = [0; LOGIN_ACK];
        for (to, from) in out.iter_mut().zip(session.sealer.seal(&ack.encode())) {
            *to = from;
        }
        (session, out)
    }
}

/// Client: has said hello.
#[derive(Debug)]
pub struct AwaitServerHello {
    server_keys: Vec<Public>,
    ephemeral: Secret<32>,
    cookie: [u8; COOKIE],
}

impl AwaitServerHello {
    /// Makes the client-hello. `server_keys` are the ones the client pins: the current key, then the alternate one if
    /// there is any. `ephemeral` and `cookie` must be fresh.
    #[must_use]
    pub fn start(server_keys: Vec<Public>, ephemeral: Secret<32>, cookie: [u8; COOKIE]) -> (Self, [u8; CLIENT_HELLO]) {
        let mut hello = [0; CLIENT_HELLO];
        let (head, tail) = hello.split_at_mut(32);
        head.copy_from_slice(&boxes::public(&ephemeral));
        tail.copy_from_slice(&cookie);
        (Self { server_keys, ephemeral, cookie }, hello)
    }

    /// Reads the server-hello and makes the login: a box of 144 bytes, and the extensions box behind it.
    ///
    /// # Errors
    /// [`HandshakeError`] when the server has none of the pinned keys, or repeats another cookie.
    pub fn login(
        self,
        hello: &[u8; SERVER_HELLO],
        identity: Identity,
        client_key: &Secret<32>,
        introduction: &Introduction,
    ) -> Result<(AwaitLoginAck, Vec<u8>), HandshakeError> {
        let mut r = Reader::new(hello);
        let server_cookie: [u8; COOKIE] = r.array()?;
        if server_cookie == self.cookie {
            return Err(HandshakeError::SameCookie);
        }
        let (server_key, challenge) = self.open_challenge(server_cookie, r.rest())?;
        let mut challenge = Reader::new(&challenge);
        let server_ephemeral: Public = challenge.array()?;
        if !equal(challenge.rest(), &self.cookie) {
            return Err(HandshakeError::WrongCookie);
        }
        let key = boxes::beforenm(&self.ephemeral, &server_ephemeral)?;
        let mut session =
            Session { sealer: Sealer::new(key.clone(), self.cookie, 1), opener: Opener::new(key, server_cookie, 2) };

        let vouch = kdf::csp_vouch(
            &boxes::beforenm(client_key, &server_key)?,
            &boxes::beforenm(client_key, &server_ephemeral)?,
            &server_cookie,
            &boxes::public(&self.ephemeral),
        );
        let (info, extensions) = match introduction {
            Introduction::Extensions(extensions) => {
                let plain = extensions.encode();
                let len = u16::try_from(plain.len() + TAG).map_err(|_| HandshakeError::BadExtensions)?;
                ([&EXTENSION_MAGIC[..], &len.to_le_bytes()].concat(), Some(plain))
            }
            Introduction::Legacy { client_info } => (cut(client_info, 32).as_bytes().to_vec(), None),
        };
        let mut data = identity.bytes().to_vec();
        data.extend(info.into_iter().chain(std::iter::repeat(0)).take(32));
        data.extend_from_slice(&server_cookie);
        data.extend_from_slice(&[0; 24]);
        data.extend_from_slice(vouch.expose());
        data.extend_from_slice(&[0; 16]);
        let mut login = session.sealer.seal(&data);
        if let Some(extensions) = extensions {
            login.extend(session.sealer.seal(&extensions));
        }
        Ok((AwaitLoginAck { session }, login))
    }

    fn open_challenge(&self, server_cookie: [u8; COOKIE], boxed: &[u8]) -> Result<(Public, Vec<u8>), HandshakeError> {
        for server_key in &self.server_keys {
            let key = boxes::beforenm(&self.ephemeral, server_key)?;
            if let Ok(challenge) = Opener::new(key, server_cookie, 1).open(boxed) {
                return Ok((*server_key, challenge));
            }
        }
        Err(HandshakeError::BadBox(BadBox))
    }
}

/// Client: has logged in.
#[derive(Debug)]
pub struct AwaitLoginAck {
    session: Session,
}

impl AwaitLoginAck {
    /// Reads the login-ack.
    ///
    /// # Errors
    /// [`HandshakeError`] when it does not open.
    pub fn finish(mut self, ack: &[u8; LOGIN_ACK]) -> Result<(Session, LoginAck), HandshakeError> {
        let plain = self.session.opener.open(ack)?;
        Ok((self.session, LoginAck::decode(&plain)?))
    }
}
