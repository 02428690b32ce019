//! `heliostat cluster`: what the nodes of a cluster need of each other.

use std::path::PathBuf;
use std::process::ExitCode;

use miette::{IntoDiagnostic as _, Result};
use rustls::pki_types::ServerName;

use crate::cluster::authority::{AUTHORITY, Authority};
use crate::net::tls::Certificate;
use crate::time::Clock;

/// What a node's name may be at most, as in the configuration.
const NAME_MAX: usize = 64;

/// Prepare nodes that share a database
#[derive(Debug, clap::Subcommand)]
pub enum Tool {
    /// Make certificates by which nodes know each other, and on the first call the authority that they are from
    Certificates(Certificates),
}

/// `cluster certificates`
#[derive(Debug, clap::Args)]
pub struct Certificates {
    /// Where everything goes. An authority that is there already is used: so nodes are added, and certificates renewed.
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
    /// A node, and the names or IP addresses at which other nodes reach it; may be given again
    #[arg(long = "node", value_name = "NAME=HOST[,HOST...]", required = true, value_parser = node)]
    nodes: Vec<Node>,
}

/// A node to be.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Node {
    name: String,
    hosts: Vec<String>,
}

fn node(text: &str) -> Result<Node, String> {
    let (name, hosts) = text.split_once('=').ok_or("expected a name, `=` and a host, as in east-1=10.0.0.1")?;
    let fine = (1..=NAME_MAX).contains(&name.len())
        && name.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-'))
        && !name.starts_with('.')
        && name != AUTHORITY;
    if !fine {
        return Err("a name is letters, digits, `.`, `_` and `-`, at most 64, and does not begin with `.`".to_owned());
    }
    let hosts: Vec<String> = hosts.split(',').map(|host| host.trim().to_owned()).collect();
    match hosts.iter().find(|host| ServerName::try_from(host.as_str()).is_err()) {
        Some(host) => Err(format!("`{host}` is neither a host name nor an IP address")),
        None => Ok(Node { name: name.to_owned(), hosts }),
    }
}

/// Carries out the command.
///
/// # Errors
/// Which file cannot be read or written.
pub async fn run(tool: Tool) -> Result<ExitCode> {
    match tool {
        Tool::Certificates(args) => certificates(&args, &mut std::io::stdout().lock()),
    }
}

fn certificates(args: &Certificates, out: &mut dyn std::io::Write) -> Result<ExitCode> {
    let authority = Authority::open(&args.out, Clock::system().now().wall_ms).into_diagnostic()?;
    for Node { name, hosts } in &args.nodes {
        let files = authority.vouch(name, hosts).into_diagnostic()?;
        let identity = Certificate::load(&files).into_diagnostic()?;
        let (until, hosts) = (identity.identity().not_after(), hosts.join(", "));
        writeln!(out, "# node {name}, reached at {hosts}; until {until}").into_diagnostic()?;
        writeln!(out, "[cluster]\nname = {name:?}").into_diagnostic()?;
        let settings = [("cert", &files.cert), ("key", &files.key), ("authority", &authority.certificate())];
        for (key, file) in settings {
            writeln!(out, "{key} = {:?}", file.display().to_string()).into_diagnostic()?;
        }
        writeln!(out).into_diagnostic()?;
    }
    let key = authority.key();
    writeln!(out, "# {} stays here: whoever has it can be a node. The nodes do not need it.", key.display())
        .into_diagnostic()?;
    Ok(ExitCode::SUCCESS)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;
    use crate::cluster::{Links, Pace, Settings};
    use crate::net::tls::CertFiles;

    #[test]
    fn nodes_are_added_by_the_same_authority_and_its_key_is_nobody_elses() {
        let dir = tempfile::tempdir().unwrap();
        let make = |nodes: &[&str]| {
            let nodes = nodes.iter().map(|text| node(text).unwrap()).collect();
            let mut out = Vec::new();
            certificates(&Certificates { out: dir.path().to_owned(), nodes }, &mut out).unwrap();
            String::from_utf8(out).unwrap()
        };
        let read = |file: &str| std::fs::read_to_string(dir.path().join(file)).unwrap();
        let said = make(&["east-1=10.0.0.1,east-1.example.org", "east-2=::1"]);
        assert!(said.contains("east-1.key") && said.contains("stays here"), "{said}");
        toml::from_str::<toml::Table>(said.split_inclusive("\n\n").next().unwrap()).unwrap();
        let (before, first) = (read("authority.pem"), read("east-1.pem"));
        make(&["west-1=west-1.example.org"]);
        assert_eq!((read("authority.pem"), read("east-1.pem")), (before, first));
        for (name, address) in [
            ("east-1", "10.0.0.1:7443"),
            ("east-1", "east-1.example.org:1"),
            ("east-2", "[::1]:1"),
            ("west-1", "west-1.example.org:1"),
        ] {
            let file = |suffix: &str| dir.path().join(format!("{name}.{suffix}"));
            let cert = CertFiles { cert: file("pem"), key: file("key") };
            let (authority, address) = (dir.path().join("authority.pem"), address.to_owned());
            Links::new(Settings { cert, authority, address, pace: Pace::default() }, Clock::system()).unwrap();
        }
        for secret in ["authority.key", "east-1.key", "west-1.key"] {
            let mode = std::fs::metadata(dir.path().join(secret)).unwrap().permissions().mode();
            assert_eq!(mode & 0o777, 0o600, "{secret}");
        }
        // An authority is not made anew beside what is left of it.
        std::fs::remove_file(dir.path().join("authority.key")).unwrap();
        let nodes = vec![node("east-3=::1").unwrap()];
        let error = certificates(&Certificates { out: dir.path().to_owned(), nodes }, &mut Vec::new()).unwrap_err();
        assert!(error.to_string().contains("authority.key"), "{error}");
    }

    #[test]
    fn what_is_no_node_is_refused() {
        for text in ["east-1", "=::1", "east-1=", "east-1=a b", "a/b=::1", ".a=::1", "authority=::1", "a=::1,"] {
            node(text).unwrap_err();
        }
        let hosts = vec!["::1".to_owned(), "a.example.org".to_owned()];
        assert_eq!(node("a=::1, a.example.org"), Ok(Node { name: "a".to_owned(), hosts }));
    }
}
