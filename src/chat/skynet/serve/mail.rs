//! Mails, by SMTP or into a directory.
//!
//! The task that decides never waits for a mail server: letters stand in a bounded line, and a few are on their way at a time. One
//! that is refused for now is tried again; one that is refused for good, or that finds the line full, is dropped and said so.
//! Nothing is promised about mails: whoever gets none registers again, and is sent another.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use lettre::message::{Mailbox, Message, MultiPart};
use lettre::{AsyncSmtpTransport, AsyncTransport as _, Tokio1Executor};
use tokio::sync::{Semaphore, mpsc};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use super::{Letter, MailHook, Reason, link};
use crate::crypto::random;
use crate::files;
use crate::metrics::{self, Outcome};

/// Letters that wait to be sent, at most.
const LINE_MAX: usize = 1_024;
/// Letters that are on their way at a time.
const UNDER_WAY_MAX: usize = 4;
/// How long a mail server may take for one command.
const PATIENCE: Duration = Duration::from_secs(30);
/// How long is waited before each further attempt.
const AGAIN_AFTER: [Duration; 3] = [Duration::from_secs(2), Duration::from_secs(30), Duration::from_secs(300)];

/// Why mails cannot be sent as configured.
#[derive(Debug, thiserror::Error)]
pub enum BadMail {
    /// Not an address, with or without a name.
    #[error("no sender of mails: {0}")]
    Sender(#[from] lettre::address::AddressError),
    /// Not the URL of a mail server.
    #[error("no mail server: {0}")]
    Server(#[from] lettre::transport::smtp::Error),
    /// The directory for mails cannot be made.
    #[error("cannot use the directory for mails: {0}")]
    Directory(std::io::Error),
}

/// Where mails go.
#[derive(Debug, Clone)]
pub enum Way {
    /// To a mail server, by a URL: `smtps://user:password@host`, or `smtp://` with `?tls=required`.
    Smtp(String),
    /// Into a directory, each a file, for development.
    Files(PathBuf),
}

#[derive(Debug, Clone)]
enum Carrier {
    Smtp(AsyncSmtpTransport<Tokio1Executor>),
    Files(PathBuf),
}

/// What a letter needs to become a mail.
#[derive(Debug)]
struct Sender {
    from: Mailbox,
    public_url: String,
}

/// See the top of this file.
#[derive(Debug)]
pub struct Post(mpsc::Sender<Letter>);

impl Post {
    /// Sends mails as `from` (an address, with or without a name), with links below `public_url`, until `stop` is cancelled.
    ///
    /// # Errors
    /// [`BadMail`] says what cannot be used.
    pub fn open(way: Way, from: &str, public_url: String, stop: CancellationToken) -> Result<Self, BadMail> {
        let sender = Sender { from: from.parse()?, public_url };
        let carrier = match way {
            Way::Smtp(url) => {
                Carrier::Smtp(AsyncSmtpTransport::<Tokio1Executor>::from_url(&url)?.timeout(Some(PATIENCE)).build())
            }
            Way::Files(dir) => {
                files::make_private_dir(&dir).map_err(BadMail::Directory)?;
                Carrier::Files(dir)
            }
        };
        let (line, letters) = mpsc::channel(LINE_MAX);
        tokio::spawn(async move { stop.run_until_cancelled(carry_all(letters, Arc::new(sender), carrier)).await });
        Ok(Self(line))
    }
}

impl MailHook for Post {
    fn send(&self, letter: Letter) {
        if self.0.try_send(letter).is_err() {
            metrics::get().skynet_mails.of(Outcome::Failed).increment(1);
            warn!("a mail is dropped: too many wait to be sent");
        }
    }
}

async fn carry_all(mut letters: mpsc::Receiver<Letter>, sender: Arc<Sender>, carrier: Carrier) {
    let places = Arc::new(Semaphore::new(UNDER_WAY_MAX));
    // Ends with the room, and what is under way with it.
    let mut under_way = tokio::task::JoinSet::new();
    while let Some(letter) = letters.recv().await {
        let Ok(place) = Arc::clone(&places).acquire_owned().await else { return };
        let (sender, carrier) = (Arc::clone(&sender), carrier.clone());
        under_way.spawn(async move {
            let _place = place;
            let outcome = match sender.written(&letter) {
                Ok(mail) => carry(&carrier, mail).await,
                Err(error) => {
                    warn!(%error, "a mail cannot be written");
                    Outcome::Failed
                }
            };
            metrics::get().skynet_mails.of(outcome).increment(1);
        });
        while under_way.try_join_next().is_some() {}
    }
}

async fn carry(carrier: &Carrier, mail: Message) -> Outcome {
    match carrier {
        Carrier::Files(dir) => {
            let path = dir.join(format!("{}.eml", hex::encode(random::bytes::<8>())));
            let write = move || files::write_whole(&path, &String::from_utf8_lossy(&mail.formatted()), true);
            match tokio::task::spawn_blocking(write).await {
                Ok(Ok(())) => {
                    info!("a mail is written");
                    Outcome::Done
                }
                Ok(Err(error)) => {
                    warn!(%error, "a mail cannot be kept");
                    Outcome::Failed
                }
                Err(error) => {
                    warn!(%error, "a mail cannot be kept");
                    Outcome::Failed
                }
            }
        }
        Carrier::Smtp(smtp) => {
            let mut again_after = AGAIN_AFTER.into_iter();
            while let Err(error) = smtp.send(mail.clone()).await {
                let Some(pause) = again_after.next().filter(|_| !error.is_permanent()) else {
                    warn!(%error, "a mail is dropped");
                    return Outcome::Failed;
                };
                info!(%error, again_in_s = pause.as_secs(), "a mail is not taken yet");
                tokio::time::sleep(pause).await;
            }
            Outcome::Done
        }
    }
}

/// Why a letter cannot become a mail.
#[derive(Debug, thiserror::Error)]
enum BadLetter {
    #[error("the address is none: {0}")]
    Address(#[from] lettre::address::AddressError),
    #[error(transparent)]
    Message(#[from] lettre::error::Error),
}

impl Sender {
    fn written(&self, letter: &Letter) -> Result<Message, BadLetter> {
        let id = format!("<{}@{}>", hex::encode(random::bytes::<16>()), self.from.email.domain());
        let mail =
            Message::builder().from(self.from.clone()).to(Mailbox::new(None, letter.to.parse()?)).message_id(Some(id));
        let (subject, text, html) = match &letter.reason {
            Reason::Confirm { token } => {
                let link = link(&self.public_url, token);
                let text = format!(
                    "Somebody, probably you, gave this address to a Skynet server. To confirm that it is yours:\n\n{link}\n\n\
                     The link is valid for 24 hours. If it was not you, there is nothing to do.\n"
                );
                let html = format!(
                    "<p>Somebody, probably you, gave this address to a Skynet server. To confirm that it is yours:</p>\
                     <p><a href=\"{link}\">{link}</a></p>\
                     <p>The link is valid for 24 hours. If it was not you, there is nothing to do.</p>"
                );
                ("Confirm your address", text, html)
            }
            Reason::Changing => {
                let text = "Somebody who is logged in wants to give your Skynet account another mail address. If it was not \
                            you, change your password now.";
                ("Your address is about to change", format!("{text}\n"), format!("<p>{text}</p>"))
            }
        };
        Ok(mail.subject(subject).multipart(MultiPart::alternative_plain_html(text, html))?)
    }
}
