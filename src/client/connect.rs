//! Where the mediator is, and how the socket gets there.

use std::fmt;
use std::sync::Arc;

use http::Uri;
use rustls::ClientConfig;
use rustls::pki_types::ServerName;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

use super::raw::{BoxedStream, Duplex, Ended, RawConnection};
use super::tls::Trust;
use crate::capture::Recorder;
use crate::wire::d2m::{ClientUrlInfo, DeviceGroupId, Reconnect};

/// A mediator: its base URL and how to trust it. Cloning shares the TLS configuration and its session cache.
#[derive(Clone)]
pub struct Mediator {
    base: String,
    host: String,
    port: u16,
    tls: Option<Arc<ClientConfig>>,
    recorder: Option<Recorder>,
}

/// Why a mediator's address or trust is of no use.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BadMediator {
    /// Not a URL with a host.
    #[error("{0} is not a URL of the form wss://host[:port][/base/path/]")]
    Url(String),
    /// Neither `ws` nor `wss`.
    #[error("the URL's scheme is {0}, not wss or ws")]
    Scheme(String),
    /// There is no certificate to trust.
    #[error("no CA to trust: {0}")]
    Ca(String),
}

/// Why there is no connection.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    /// No TCP connection.
    #[error("no TCP connection: {0}")]
    Tcp(std::io::Error),
    /// No TLS connection; also when the certificate is not trusted.
    #[error("no TLS connection: {0}")]
    Tls(std::io::Error),
    /// The mediator answered the upgrade with another status than 101.
    #[error("the mediator refused the WebSocket with HTTP status {0}")]
    Status(u16),
    /// The other side does not speak WebSocket.
    #[error("no WebSocket: {0}")]
    WebSocket(String),
    /// The mediator ended the handshake.
    #[error("not admitted: {0}")]
    NotAdmitted(#[from] Ended),
    /// The mediator wants a version that we do not speak.
    #[error("the mediator speaks version {0}")]
    Version(u32),
    /// The mediator sent something else than the handshake's next payload.
    #[error("{0} came where {1} was due")]
    Unexpected(String, &'static str),
    /// The mediator's ephemeral key agrees with nothing.
    #[error("the mediator's ephemeral key is of low order")]
    LowOrder,
}

impl ConnectError {
    /// What a well-behaved device does next.
    #[must_use]
    pub fn reconnect(&self) -> Reconnect {
        match self {
            Self::NotAdmitted(ended) => ended.reconnect(),
            Self::Version(_) => Reconnect::UserInteraction,
            Self::Tcp(_)
            | Self::Tls(_)
            | Self::Status(_)
            | Self::WebSocket(_)
            | Self::Unexpected(..)
            | Self::LowOrder => Reconnect::Automatic,
        }
    }
}

impl Mediator {
    /// Takes a base URL, `wss://host[:port][/base/path/]`, in which `{deviceGroupIdPrefix4}` and
    /// `{deviceGroupIdPrefix8}` stand for the first four and eight bits of the device group id (spec 1.2).
    ///
    /// # Errors
    /// [`BadMediator`] when the URL or the CA is of no use.
    pub fn new(base: &str, trust: &Trust) -> Result<Self, BadMediator> {
        let bad = || BadMediator::Url(base.to_owned());
        // Any group does: the placeholders may stand in the host, but then each group has its own; see `open`.
        let uri: Uri = fill(base, &DeviceGroupId::new([0; 32])).parse().map_err(|_| bad())?;
        let host = uri.host().ok_or_else(bad)?.to_owned();
        let (tls, port) = match uri.scheme_str() {
            Some("wss") => (Some(trust.client_config()?), 443),
            Some("ws") => (None, 80),
            Some(other) => return Err(BadMediator::Scheme(other.to_owned())),
            None => return Err(bad()),
        };
        let slash = if base.ends_with('/') { "" } else { "/" };
        Ok(Self { base: format!("{base}{slash}"), host, port: uri.port_u16().unwrap_or(port), tls, recorder: None })
    }

    /// Records the connections of one device group that are opened from here on: of the first one that connects.
    #[must_use]
    pub fn recorded(self, recorder: Recorder) -> Self {
        Self { recorder: Some(recorder), ..self }
    }

    /// Whether the socket is encrypted: `wss`.
    #[must_use]
    pub const fn is_encrypted(&self) -> bool {
        self.tls.is_some()
    }

    /// The host of the base URL.
    #[must_use]
    pub fn host(&self) -> &str {
        &self.host
    }

    /// The URL of one device group.
    #[must_use]
    pub fn url(&self, group: &ClientUrlInfo) -> String {
        format!("{}{}", fill(&self.base, &group.device_group_id), group.to_segment())
    }

    /// Opens the WebSocket of a device group. The handshake is left to the caller.
    ///
    /// # Errors
    /// [`ConnectError`] names what did not work.
    pub async fn open(&self, group: &ClientUrlInfo) -> Result<RawConnection, ConnectError> {
        Ok(self.taken_down(self.open_url(&self.url(group)).await?, group))
    }

    /// The same, with something of the caller's between the socket and the WebSocket.
    ///
    /// # Errors
    /// [`ConnectError`], as for [`Self::open`].
    pub async fn open_through<S: Duplex + 'static>(
        &self,
        group: &ClientUrlInfo,
        through: impl FnOnce(Box<dyn Duplex>) -> S,
    ) -> Result<RawConnection, ConnectError> {
        let url = self.url(group);
        let uri: Uri = url.parse().map_err(|error| ConnectError::WebSocket(format!("{url}: {error}")))?;
        Ok(self.taken_down(RawConnection::over(through(self.dial(&uri).await?), &url).await?, group))
    }

    /// Recorded, if it is of the group that is.
    fn taken_down(&self, connection: RawConnection, group: &ClientUrlInfo) -> RawConnection {
        let tap = self.recorder.as_ref().and_then(|it| it.connect(group.device_group_id, &group.server_group));
        match tap {
            Some(tap) => connection.tapped(tap),
            None => connection,
        }
    }

    /// Opens a WebSocket with any path behind the base URL: for paths that should be refused.
    ///
    /// # Errors
    /// [`ConnectError`] as for [`Self::open`].
    pub async fn open_path(&self, path: &str) -> Result<RawConnection, ConnectError> {
        self.open_url(&format!("{}{path}", self.base)).await
    }

    async fn open_url(&self, url: &str) -> Result<RawConnection, ConnectError> {
        let uri: Uri = url.parse().map_err(|error| ConnectError::WebSocket(format!("{url}: {error}")))?;
        RawConnection::over(self.dial(&uri).await?, url).await
    }

    /// The path under which a device group is asked for: the base path and the group's segment.
    #[must_use]
    pub fn path(&self, group: &ClientUrlInfo) -> String {
        self.url(group).parse::<Uri>().map_or_else(|_| "/".to_owned(), |uri| uri.path().to_owned())
    }

    /// A stream to the mediator of a device group on which not even HTTP has been spoken: for requests that should be
    /// refused.
    ///
    /// # Errors
    /// [`ConnectError::Tcp`] or [`ConnectError::Tls`].
    pub async fn stream(&self, group: &ClientUrlInfo) -> Result<impl Duplex + use<>, ConnectError> {
        let url = self.url(group);
        let uri: Uri = url.parse().map_err(|error| ConnectError::WebSocket(format!("{url}: {error}")))?;
        self.dial(&uri).await
    }

    async fn dial(&self, uri: &Uri) -> Result<BoxedStream, ConnectError> {
        let host = uri.host().unwrap_or(&self.host).trim_matches(['[', ']']).to_owned();
        let tcp = TcpStream::connect((host.as_str(), self.port)).await.map_err(ConnectError::Tcp)?;
        tcp.set_nodelay(true).map_err(ConnectError::Tcp)?;
        Ok(match &self.tls {
            None => Box::new(tcp),
            Some(config) => {
                let name =
                    ServerName::try_from(host).map_err(|error| ConnectError::Tls(std::io::Error::other(error)))?;
                let connector = TlsConnector::from(Arc::clone(config));
                Box::new(connector.connect(name, tcp).await.map_err(ConnectError::Tls)?)
            }
        })
    }
}

impl fmt::Debug for Mediator {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Mediator").field("base", &self.base).finish_non_exhaustive()
    }
}

/// Real clients zero-pad the eight bits, and take the first of the two digits for the four.
fn fill(base: &str, group: &DeviceGroupId) -> String {
    let [first, ..] = *group.as_bytes();
    base.replace("{deviceGroupIdPrefix4}", &format!("{:x}", first >> 4))
        .replace("{deviceGroupIdPrefix8}", &format!("{first:02x}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::d2m::ServerGroup;

    fn group() -> ClientUrlInfo {
        let mut id = [9; 32];
        id[0] = 0x5a;
        ClientUrlInfo { device_group_id: DeviceGroupId::new(id), server_group: ServerGroup::new("a0").unwrap() }
    }

    #[test]
    fn base_urls_end_in_a_slash_and_placeholders_are_filled() {
        let segment = group().to_segment();
        for (base, url) in [
            ("ws://localhost:80", format!("ws://localhost:80/{segment}")),
            ("ws://localhost/m/", format!("ws://localhost/m/{segment}")),
            ("ws://m-{deviceGroupIdPrefix4}.example/{deviceGroupIdPrefix8}", format!("ws://m-5.example/5a/{segment}")),
        ] {
            assert_eq!(Mediator::new(base, &Trust::System).unwrap().url(&group()), url);
        }
    }

    #[test]
    fn what_is_no_mediator_is_named() {
        let bad = |base| Mediator::new(base, &Trust::CaPem(Vec::new())).unwrap_err();
        assert_eq!(bad("localhost:8443"), BadMediator::Url("localhost:8443".to_owned()));
        assert_eq!(bad("http://localhost"), BadMediator::Scheme("http".to_owned()));
        assert_eq!(bad("wss://"), BadMediator::Url("wss://".to_owned()));
        assert!(matches!(bad("wss://localhost"), BadMediator::Ca(_)));
    }
}
