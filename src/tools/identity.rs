//! `heliostat identity`: who may log in to the embedded chat server. Works on the directory in the data directory, also
//! while the server runs: it looks at every login.

use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::Subcommand;
use miette::{IntoDiagnostic as _, Result, WrapErr as _, miette};

use super::keyfile;
use crate::chat::csp::store::{AddError, Directory, DirectoryState, FILE};
use crate::chat::csp::wire::Identity;
use crate::crypto::Secret;
use crate::crypto::boxes::{self, Public};
use crate::files;
use crate::wire::d2m::ServerGroup;

/// `identity`
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(subcommand)]
    what: What,
    /// The server's data directory
    #[arg(long, global = true, default_value = "heliostat-data", value_name = "DIR")]
    data: PathBuf,
}

#[derive(Debug, Subcommand)]
enum What {
    /// Make an identity with a new key; the secret half goes into a file that only you can read
    New {
        /// 8 characters, `0-9A-Z`, the first may be `*`; random when absent
        identity: Option<String>,
        /// What its devices put into their URL
        #[arg(long, default_value = "a0", value_name = "NAME")]
        server_group: String,
        /// Where the secret key goes; IDENTITY.identity in the data directory when absent
        #[arg(long, value_name = "FILE")]
        out: Option<PathBuf>,
    },
    /// Add an identity whose key was made elsewhere
    Import {
        /// 8 characters, `0-9A-Z`, the first may be `*`
        identity: String,
        /// The public key, 64 hex digits
        public_key: String,
        /// What its devices put into their URL
        #[arg(long, default_value = "a0", value_name = "NAME")]
        server_group: String,
    },
    /// List all identities
    List,
    /// Let an identity log in no more, get no new messages, and lose its connections; it cannot be taken back
    Revoke {
        /// Which one
        identity: String,
    },
}

/// Carries out the command.
///
/// # Errors
/// What is wrong with the arguments, or why the directory cannot be changed.
pub async fn run(args: Args) -> Result<ExitCode> {
    if matches!(args.what, What::List | What::Revoke { .. }) && !args.data.join(FILE).exists() {
        return Err(miette!(
            help = "name the server's data directory with --data DIR",
            "there are no identities in {}",
            args.data.display()
        ));
    }
    files::make_private_dir(&args.data)
        .into_diagnostic()
        .wrap_err_with(|| format!("cannot make the data directory {}", args.data.display()))?;
    let directory = Directory::open(&args.data).await.into_diagnostic()?;
    let done = carry_out(&directory, args.what, &args.data).await;
    directory.close().await;
    done
}

async fn carry_out(directory: &Directory, what: What, data: &Path) -> Result<ExitCode> {
    let mut out = std::io::stdout().lock();
    match what {
        What::New { identity, server_group, out: file } => {
            let identity = identity.map_or_else(|| Ok(Identity::random()), |text| parse(&text))?;
            let secret = Secret::random();
            let public = boxes::public(&secret);
            let file = file.unwrap_or_else(|| data.join(format!("{identity}.identity")));
            // The file first: an identity whose key went nowhere could be neither used nor made again.
            keyfile::write_identity(&file, identity, &secret)?;
            if let Err(error) = add(directory, identity, &public, &server_group).await {
                std::fs::remove_file(&file).into_diagnostic()?;
                return Err(error);
            }
            writeln!(out, "{identity}  {}", hex::encode(public)).into_diagnostic()?;
            writeln!(out, "secret key in {}", file.display()).into_diagnostic()?;
        }
        What::Import { identity, public_key, server_group } => {
            let mut public: Public = [0; 32];
            hex::decode_to_slice(&public_key, &mut public).map_err(|_| miette!("a public key is 64 hex digits"))?;
            let identity = parse(&identity)?;
            add(directory, identity, &public, &server_group).await?;
            writeln!(out, "{identity}  {}", hex::encode(public)).into_diagnostic()?;
        }
        What::List => {
            for entry in directory.list().await.into_diagnostic()? {
                let state = match entry.state {
                    DirectoryState::Active => "active",
                    DirectoryState::Revoked => "revoked",
                };
                let (key, group) = (hex::encode(entry.public_key), entry.server_group);
                writeln!(out, "{}  {key}  {group:<4}  {state}", entry.identity).into_diagnostic()?;
            }
        }
        What::Revoke { identity } => {
            let identity = parse(&identity)?;
            if !directory.revoke(identity).await.into_diagnostic()? {
                return Err(miette!("there is no identity {identity}"));
            }
            writeln!(
                out,
                "{identity} is revoked, for good: it cannot log in any more, and nothing new is kept for it.\n\
                 A connection that it has now is ended with its next word, within a minute at the latest."
            )
            .into_diagnostic()?;
        }
    }
    Ok(ExitCode::SUCCESS)
}

fn parse(text: &str) -> Result<Identity> {
    text.parse().map_err(|_| miette!("{text} is not an identity: 8 characters of 0-9 and A-Z, the first may be *"))
}

async fn add(directory: &Directory, identity: Identity, public: &Public, server_group: &str) -> Result<()> {
    ServerGroup::new(server_group).ok_or_else(|| miette!("a server group is 1 to 32 digits and letters"))?;
    directory.add(identity, public, server_group).await.map_err(|error| match error {
        AddError::Taken => miette!("there is an identity {identity} already"),
        other @ (AddError::LowOrder | AddError::Store(_)) => miette!("{other}"),
    })
}
