//! A certificate in files, and what becomes of it.
//!
//! Whoever renews certificates writes two files, one after the other, and tells nobody. So they are looked at every few
//! seconds; file events would be quicker and do not cross bind mounts. A look *reads* both: times and sizes would be cheaper
//! and lie, because tools preserve times, clocks of network file systems differ, and a renewed certificate often has the size
//! of the old one.
//!
//! Only a pair that can be used takes the place of the present one. Any other changes nothing and is reported once; it is
//! tried again at every look, because half of a pair is followed by the other half, and a certificate that is not valid yet
//! will be.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use sha2::{Digest as _, Sha256};

use super::tls::{self, CertFiles, Certificate, Identity, Tls, TlsError};
use crate::metrics::{self, Outcome};
use crate::time::Clock;

/// How often the files are looked at.
pub const LOOK_EVERY: Duration = Duration::from_secs(5);

/// Keeps what is presented the same as what is in the files. Clones are handles of the same.
#[derive(Debug, Clone)]
pub struct Watch(Arc<Watched>);

#[derive(Debug)]
struct Watched {
    files: CertFiles,
    tls: Tls,
    clock: Clock,
    seen: Mutex<Seen>,
}

/// What both files held, in a digest.
type Contents = [u8; 32];

#[derive(Debug)]
struct Seen {
    /// What is presented.
    presented: Contents,
    /// What was found unusable and has been reported.
    reported: Option<Contents>,
}

/// What became of a look.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Looked {
    /// The files hold what is presented.
    Unchanged,
    /// There is a new certificate.
    Replaced {
        /// Who we are now.
        identity: Arc<Identity>,
        /// Whether clients that know the old pin refuse the new certificate.
        new_pin: bool,
    },
}

impl Watch {
    /// Reads the files, which have to hold a usable pair. One that is out of date is better than none: it is presented, since
    /// clients that go by the pin do not mind, and said to be what it is.
    ///
    /// # Errors
    /// [`TlsError`] names the file and what is wrong with it.
    pub fn open(files: CertFiles, clock: Clock) -> Result<Self, TlsError> {
        let (certificate, contents) = read(&files);
        let certificate = certificate?;
        if let Some(out_of_date) = certificate.identity().out_of_date(clock.now().wall_ms) {
            tracing::warn!(cert = %files.cert.display(), out_of_date, "the certificate is presented all the same");
        }
        let tls = Tls::presenting(certificate)?;
        let seen = Mutex::new(Seen { presented: contents, reported: None });
        Ok(Self(Arc::new(Watched { files, tls, clock, seen })))
    }

    /// What presents the certificate.
    #[must_use]
    pub fn tls(&self) -> &Tls {
        &self.0.tls
    }

    /// Looks at the files now, as a part of a reload that the caller counts. Reads them on the calling thread.
    ///
    /// # Errors
    /// [`TlsError`] names the file and what is wrong with it; what was presented still is.
    pub fn reload(&self) -> Result<Looked, TlsError> {
        self.look().map_err(|(error, _)| error)
    }

    /// Looks at the files every so often, for ever, and logs and counts what became of it.
    pub async fn run(self, every: Duration) {
        loop {
            tokio::time::sleep(every).await;
            let this = self.clone();
            // A file system that hangs holds up a thread that nobody waits for.
            let looked = tokio::task::spawn_blocking(move || this.look()).await;
            match looked {
                Ok(Ok(Looked::Unchanged) | Err((_, Known::Already))) => {}
                Ok(Ok(Looked::Replaced { identity, new_pin })) => {
                    metrics::get().reloads.of(Outcome::Done).increment(1);
                    log_replaced(&identity, new_pin);
                }
                Ok(Err((error, Known::New))) => {
                    metrics::get().reloads.of(Outcome::Failed).increment(1);
                    tracing::warn!(%error, "the new certificate cannot be used; the present one stays");
                }
                Err(error) => tracing::error!(%error, "could not look at the certificate"),
            }
        }
    }

    fn look(&self) -> Result<Looked, (TlsError, Known)> {
        let Watched { files, tls, clock, seen } = &*self.0;
        // Held while reading, so that two looks cannot present what they read in the wrong order.
        let mut seen = seen.lock().unwrap_or_else(PoisonError::into_inner);
        let (certificate, contents) = read(files);
        if contents == seen.presented {
            seen.reported = None;
            return Ok(Looked::Unchanged);
        }
        let now_ms = clock.now().wall_ms;
        let present = tls.identity();
        let worse = |new: &Identity| match &present {
            Some(present) if present.out_of_date(now_ms).is_none() => new.out_of_date(now_ms),
            _ => None,
        };
        let certificate = certificate.and_then(|certificate| match worse(certificate.identity()) {
            Some(reason) => Err(TlsError::content(&files.cert, reason)),
            None => Ok(certificate),
        });
        match certificate {
            Ok(certificate) => {
                let identity = Arc::clone(certificate.identity());
                let before = tls.present(certificate);
                *seen = Seen { presented: contents, reported: None };
                let new_pin = before.is_none_or(|before| before.pin != identity.pin);
                Ok(Looked::Replaced { identity, new_pin })
            }
            Err(error) => {
                let known = if seen.reported == Some(contents) { Known::Already } else { Known::New };
                seen.reported = Some(contents);
                Err((error, known))
            }
        }
    }
}

/// Whether something was reported before.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Known {
    New,
    Already,
}

/// Says who we are from now on.
pub fn log_replaced(identity: &Identity, new_pin: bool) {
    let Identity { pin, names, .. } = identity;
    tracing::info!(%pin, new_pin, ?names, not_after = identity.not_after(), "a new certificate is presented");
}

/// Reads both files: what they make, and what they held.
fn read(files: &CertFiles) -> (Result<Certificate, TlsError>, Contents) {
    let (cert, key) = (tls::read_pem(&files.cert), tls::read_pem(&files.key));
    let mut held = Sha256::new();
    for read in [&cert, &key] {
        let (kind, said) = match read {
            Ok(text) => (0, Sha256::digest(text)),
            Err(error) => (1, Sha256::digest(error.to_string())),
        };
        held.update([kind]);
        held.update(said);
    }
    let certificate = cert.and_then(|cert| Certificate::from_pem(files, &cert, &key?));
    (certificate, held.finalize().into())
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use rcgen::{CertificateParams, KeyPair};

    use super::super::tls::tests::TODAY;
    use super::*;

    const DAY_MS: u64 = 86_400_000;

    /// A certificate that is valid from one day to another, counted from today, and its key.
    fn pair(from_day: u64, days: u64) -> (String, String) {
        let mut params = CertificateParams::new(["chat.example.org".to_owned(), "::1".to_owned()]).unwrap();
        let today = rcgen::date_time_ymd(1970, 1, 1) + Duration::from_millis(TODAY);
        params.not_before = today + Duration::from_millis(from_day * DAY_MS);
        params.not_after = params.not_before + Duration::from_millis(days * DAY_MS);
        let key = KeyPair::generate().unwrap();
        (params.self_signed(&key).unwrap().pem(), key.serialize_pem())
    }

    fn write(files: &CertFiles, (cert, key): &(String, String)) {
        std::fs::write(&files.cert, cert).unwrap();
        std::fs::write(&files.key, key).unwrap();
    }

    fn in_dir(dir: &Path) -> CertFiles {
        CertFiles { cert: dir.join("cert.pem"), key: dir.join("key.pem") }
    }

    fn now(day: u64) -> Clock {
        Clock::following(TODAY + day * DAY_MS)
    }

    fn pin(watch: &Watch) -> String {
        watch.tls().identity().unwrap().pin.clone()
    }

    #[test]
    fn a_new_pair_is_presented_and_says_who_it_is() {
        let dir = tempfile::tempdir().unwrap();
        let files = in_dir(dir.path());
        let first = pair(0, 90);
        write(&files, &first);
        let watch = Watch::open(files.clone(), now(1)).unwrap();
        let old = pin(&watch);
        assert_eq!(watch.reload().unwrap(), Looked::Unchanged);
        write(&files, &pair(0, 30));
        let Looked::Replaced { identity, new_pin: true } = watch.reload().unwrap() else { panic!("not replaced") };
        assert_eq!(watch.tls().identity(), Some(Arc::clone(&identity)));
        assert_ne!(identity.pin, old);
        assert_eq!(identity.names, ["chat.example.org", "::1"]);
        assert_eq!(identity.seconds_left(TODAY), 30 * 86_400);
        assert_eq!(identity.not_after(), "2026-12-21T00:00:00Z");
        assert_eq!(watch.reload().unwrap(), Looked::Unchanged);
        // The same key certified again: clients that know the pin notice nothing.
        write(&files, &first);
        watch.reload().unwrap();
        let key = KeyPair::from_pem(&first.1).unwrap();
        let renewed = CertificateParams::new(["chat.example.org".to_owned()]).unwrap().self_signed(&key).unwrap();
        std::fs::write(&files.cert, renewed.pem()).unwrap();
        assert!(matches!(watch.reload().unwrap(), Looked::Replaced { new_pin: false, .. }));
    }

    #[test]
    fn a_look_that_is_part_of_a_reload_is_not_counted_beside_it() {
        let dir = tempfile::tempdir().unwrap();
        let files = in_dir(dir.path());
        write(&files, &pair(0, 90));
        let watch = Watch::open(files.clone(), now(1)).unwrap();
        write(&files, &pair(0, 30));
        assert!(matches!(watch.reload().unwrap(), Looked::Replaced { .. }));
        std::fs::remove_file(&files.key).unwrap();
        watch.reload().unwrap_err();
        let counted = metrics::render();
        for result in ["done", "failed"] {
            assert!(counted.contains(&format!("heliostat_reloads_total{{result=\"{result}\"}} 0")), "{counted}");
        }
    }

    #[test]
    fn what_cannot_be_used_changes_nothing_and_is_told_once() {
        let dir = tempfile::tempdir().unwrap();
        let files = in_dir(dir.path());
        let (good, other) = (pair(0, 90), pair(0, 90));
        write(&files, &good);
        let watch = Watch::open(files.clone(), now(1)).unwrap();
        let old = pin(&watch);
        let torn = (good.0[..good.0.len() / 2].to_owned(), good.1.clone());
        let cases: [(&str, (String, String), &str); 6] = [
            ("half of a new pair", (other.0.clone(), good.1.clone()), "cannot be used: "),
            ("half written", torn, "cert.pem: not PEM"),
            ("emptied", (String::new(), good.1.clone()), "cert.pem: there is no certificate"),
            ("key emptied", (good.0.clone(), String::new()), "key.pem: there is no private key"),
            ("expired", pair(0, 0), "cert.pem: expired on 2026-11-21T00:00:00Z"),
            ("not yet", pair(2, 9), "cert.pem: not valid before 2026-11-23T00:00:00Z"),
        ];
        for (what, unusable, expected) in cases {
            write(&files, &unusable);
            let (error, known) = watch.look().unwrap_err();
            assert!(error.to_string().contains(expected), "{what}: {error}");
            assert_eq!((known, watch.look().unwrap_err().1), (Known::New, Known::Already), "{what}");
            assert_eq!(pin(&watch), old, "{what}");
        }
        std::fs::remove_file(&files.key).unwrap();
        let (error, known) = watch.look().unwrap_err();
        assert!(error.to_string().contains("key.pem: No such file") && known == Known::New, "{error}");
        // As it was: nothing to do. Broken again in the same way: that is news again.
        write(&files, &good);
        assert_eq!(watch.reload().unwrap(), Looked::Unchanged);
        std::fs::remove_file(&files.key).unwrap();
        assert_eq!(watch.look().unwrap_err().1, Known::New);
        // The other half comes, and all is well.
        write(&files, &other);
        assert!(matches!(watch.reload().unwrap(), Looked::Replaced { new_pin: true, .. }));
        assert_ne!(pin(&watch), old);
    }

    #[test]
    fn one_that_is_out_of_date_is_better_than_none_and_not_than_a_good_one() {
        let dir = tempfile::tempdir().unwrap();
        let files = in_dir(dir.path());
        write(&files, &pair(0, 9));
        let watch = Watch::open(files.clone(), now(10)).unwrap();
        write(&files, &pair(0, 8));
        assert!(matches!(watch.reload().unwrap(), Looked::Replaced { .. }), "neither is any good");
        write(&files, &pair(0, 90));
        assert!(matches!(watch.reload().unwrap(), Looked::Replaced { .. }));
        write(&files, &pair(0, 9));
        watch.reload().unwrap_err();
    }

    #[tokio::test(start_paused = true)]
    async fn a_certificate_becomes_valid_while_its_files_stay() {
        let dir = tempfile::tempdir().unwrap();
        let files = in_dir(dir.path());
        write(&files, &pair(0, 90));
        let clock = now(1);
        let watch = Watch::open(files.clone(), clock).unwrap();
        let old = pin(&watch);
        write(&files, &pair(2, 90));
        watch.reload().unwrap_err();
        tokio::time::sleep(Duration::from_millis(DAY_MS)).await;
        assert!(matches!(watch.reload().unwrap(), Looked::Replaced { .. }));
        assert_ne!(pin(&watch), old);
    }

    #[test]
    fn a_server_does_not_start_with_what_cannot_be_used() {
        let dir = tempfile::tempdir().unwrap();
        let files = in_dir(dir.path());
        write(&files, &(pair(0, 90).0, pair(0, 90).1));
        let error = Watch::open(files, now(1)).unwrap_err().to_string();
        assert!(error.contains("cert.pem and key") && error.contains("key.pem cannot be used"), "{error}");
    }
}
