//! Where the server is, and how its bytes get here: by TLS, on this machine without, or through a mediator as a device of a group.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use rustls::ClientConfig;
use rustls::pki_types::ServerName;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_util::sync::CancellationToken;

use super::line::Line;
use crate::chat::skynet::PORT;
use crate::client::{BadMediator, ConnectError, Device, DeviceConfig, Mediator, Sender, Trust};
use crate::net::listen::keep_alive;
use crate::tools::keyfile::{self, Remembered};
use crate::wire::d2m::{CloseCode, DeviceId, Reconnect, ServerGroup, ToDevice};

/// How long connecting may take.
const PATIENCE: Duration = Duration::from_secs(10);

/// Why an address is none.
#[derive(Debug, thiserror::Error)]
pub enum BadPlace {
    /// It is not `HOST[:PORT]`, `plain://HOST:PORT` or a mediator's URL.
    #[error("{0} is no address: HOST[:PORT], plain://HOST:PORT on this machine, or a mediator's wss://HOST:PORT")]
    Address(String),
    /// What is said would be read by others.
    #[error("{0} is not on this machine, so it has to be encrypted")]
    Plain(String),
    /// Nobody is trusted.
    #[error(transparent)]
    Trust(#[from] BadMediator),
}

/// Why there is no connection.
#[derive(Debug, thiserror::Error)]
pub enum NoConnection {
    /// The server was not reached.
    #[error("the server is not reached: {0}")]
    Server(#[from] io::Error),
    /// The mediator was not, or does not want this device.
    #[error(transparent)]
    Mediator(#[from] ConnectError),
    /// What is remembered about devices cannot be read or written.
    #[error("{0}")]
    Remembered(String),
}

impl NoConnection {
    /// Whether there is no point in trying again without doing something.
    #[must_use]
    pub fn is_final(&self) -> bool {
        match self {
            Self::Server(_) => false,
            Self::Mediator(error) => error.reconnect() == Reconnect::UserInteraction,
            Self::Remembered(_) => true,
        }
    }
}

/// See the top of this file.
#[derive(Debug, Clone)]
pub struct Place(Way);

#[derive(Clone)]
enum Way {
    Direct { authority: String, tls: Option<(Arc<ClientConfig>, ServerName<'static>)> },
    Mediator(Box<Through>),
}

impl std::fmt::Debug for Way {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Direct { authority, tls } => write!(f, "Direct({authority}, tls: {})", tls.is_some()),
            Self::Mediator(through) => write!(f, "Mediator({}, {:?})", through.address, through.device),
        }
    }
}

/// A device of a group.
#[derive(Clone)]
struct Through {
    mediator: Mediator,
    address: String,
    /// Which devices were admitted is remembered beside it.
    key_file: PathBuf,
    server_group: ServerGroup,
    device: DeviceId,
}

impl Place {
    /// A server without a mediator: `HOST`, `HOST:PORT`, or `plain://HOST:PORT` for one on this machine that does no TLS.
    ///
    /// # Errors
    /// [`BadPlace`] says what is wrong with the address.
    pub fn direct(address: &str, trust: &Trust) -> Result<Self, BadPlace> {
        let bad = || BadPlace::Address(address.to_owned());
        let (plain, rest) = address.strip_prefix("plain://").map_or((false, address), |rest| (true, rest));
        if rest.is_empty() || rest.contains('/') {
            return Err(bad());
        }
        let has_port =
            rest.rsplit_once(':').is_some_and(|(host, port)| !host.ends_with(':') && port.parse::<u16>().is_ok());
        let authority = if has_port { rest.to_owned() } else { format!("{rest}:{PORT}") };
        let host = authority.rsplit_once(':').map_or(rest, |(host, _)| host).trim_matches(['[', ']']);
        if plain {
            let local = matches!(host, "localhost" | "127.0.0.1" | "::1");
            return match local {
                true => Ok(Self(Way::Direct { authority, tls: None })),
                false => Err(BadPlace::Plain(host.to_owned())),
            };
        }
        let name = ServerName::try_from(host.to_owned()).map_err(|_| bad())?;
        Ok(Self(Way::Direct { authority, tls: Some((trust.client_config()?, name)) }))
    }

    /// A server behind a mediator, as a device of the group whose key is in that file.
    #[must_use]
    pub fn through(
        mediator: Mediator,
        address: &str,
        key_file: &Path,
        server_group: ServerGroup,
        device: DeviceId,
    ) -> Self {
        let (address, key_file) = (address.to_owned(), key_file.to_owned());
        Self(Way::Mediator(Box::new(Through { mediator, address, key_file, server_group, device })))
    }

    /// What the server is known by: a device that is kept belongs to it.
    #[must_use]
    pub fn name(&self) -> String {
        match &self.0 {
            Way::Direct { authority, .. } => authority.to_lowercase(),
            Way::Mediator(through) => {
                format!("{} behind {}", through.server_group.as_str(), through.address.trim_end_matches('/'))
            }
        }
    }

    /// Connects.
    ///
    /// # Errors
    /// [`NoConnection`] says why not.
    pub async fn connect(&self) -> Result<Line, NoConnection> {
        match &self.0 {
            Way::Direct { authority, tls } => {
                let connect = async {
                    let tcp = TcpStream::connect(authority).await?;
                    tcp.set_nodelay(true)?;
                    // The protocol has no ping (spec 1.1).
                    keep_alive(&tcp);
                    Ok::<_, io::Error>(match tls {
                        None => Line::over(tcp),
                        Some((config, name)) => {
                            Line::over(TlsConnector::from(Arc::clone(config)).connect(name.clone(), tcp).await?)
                        }
                    })
                };
                Ok(tokio::time::timeout(PATIENCE, connect)
                    .await
                    .map_err(|_| io::Error::from(io::ErrorKind::TimedOut))??)
            }
            Way::Mediator(through) => through.connect().await,
        }
    }
}

impl Through {
    async fn connect(&self) -> Result<Line, NoConnection> {
        let remembered = |error: miette::Report| NoConnection::Remembered(error.to_string());
        let key = keyfile::load(&self.key_file).map_err(remembered)?;
        let mut devices = Remembered::beside(&self.key_file).map_err(remembered)?;
        let config = DeviceConfig {
            expected_slot_state: devices.expected(&self.address, self.device),
            device_info: b"skynet".to_vec(),
            ..DeviceConfig::new(key, self.server_group.clone(), self.device)
        };
        let connected = Device::connect(&self.mediator, &config).await;
        if let Err(ConnectError::NotAdmitted(ended)) = &connected
            && ended.close_code() == Some(CloseCode::Dropped)
        {
            devices.note(&self.address, self.device, false).map_err(remembered)?;
        }
        let mut device = connected?;
        devices.note(&self.address, self.device, true).map_err(remembered)?;
        let Some(stream) = device.proxy_stream() else {
            return Err(io::Error::other("the mediator gives no connection to the server").into());
        };
        let over = CancellationToken::new();
        let (sender, mut receiver) = device.split();
        let stop = over.clone();
        // Each device has a session of its own, so there is nothing that they have to tell each other. What another program of the
        // group reflects is acknowledged: a queue that only grows would end this device.
        tokio::spawn(async move {
            let drain = async {
                while let Ok(payload) = receiver.next().await {
                    if let ToDevice::Reflected(message) = payload
                        && acknowledge(&sender, &message).await.is_err()
                    {
                        break;
                    }
                }
            };
            tokio::select! {
                () = drain => {}
                () = stop.cancelled() => {}
            }
        });
        Ok(Line::over(stream).holding(over.drop_guard()))
    }
}

async fn acknowledge(sender: &Sender, message: &crate::wire::d2m::Reflected) -> Result<(), crate::client::Ended> {
    sender.ack(message.id()).await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_has_a_port_and_is_encrypted_unless_it_is_here() {
        let trust = Trust::Pin([0; 32]);
        let authority = |address: &str| match Place::direct(address, &trust) {
            Ok(Place(Way::Direct { authority, tls })) => Ok((authority, tls.is_some())),
            Ok(_) => unreachable!(),
            Err(error) => Err(error.to_string()),
        };
        for (address, expected, tls) in [
            ("skynet.example.org", "skynet.example.org:32761", true),
            ("localhost:7", "localhost:7", true),
            ("[::1]:7", "[::1]:7", true),
            ("[::1]", "[::1]:32761", true),
            ("plain://127.0.0.1:7", "127.0.0.1:7", false),
            ("plain://localhost", "localhost:32761", false),
        ] {
            assert_eq!(authority(address), Ok((expected.to_owned(), tls)), "{address}");
        }
        for bad in ["", "plain://", "plain://192.0.2.1:7", "plain://example.org", "https://example.org", "a b:7"] {
            assert!(authority(bad).is_err(), "{bad}");
        }
    }
}
