//! `heliostat conform`: the judge of servers and clients.
//!
//! | file | holds |
//! |---|---|
//! | [`server`] | tries every clause on a mediator |
//! | [`client`] | plays a mediator by a script and judges the client that comes |
//! | [`report`] | results as table, TAP, JUnit, JSON |

pub mod client;
mod finding;
pub mod report;
pub mod server;

use std::io::{IsTerminal as _, Write as _};
use std::process::ExitCode;

use miette::{IntoDiagnostic as _, Result};

use report::{Format, Report};

/// `conform`
#[derive(Debug, clap::Subcommand)]
pub enum Command {
    /// Try every clause on a mediator
    Server(Box<server::Args>),
    /// Play a mediator by a script and judge the client that connects
    Client(Box<client::Args>),
}

/// Judges.
///
/// # Errors
/// When it cannot begin.
pub async fn run(command: Command) -> Result<ExitCode> {
    match command {
        Command::Server(args) => server::run(*args).await,
        Command::Client(args) => client::run(*args).await,
    }
}

fn print(text: &str) -> Result<()> {
    std::io::stdout().write_all(text.as_bytes()).into_diagnostic()
}

/// Prints a report; the exit status says whether it is good.
fn conclude(report: &Report, format: Format) -> Result<ExitCode> {
    let colours = std::io::stdout().is_terminal() && std::env::var_os("NO_COLOR").is_none_or(|set| set.is_empty());
    print(&report.render(format, colours))?;
    Ok(if report.is_good() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Whether a case is meant by one of the patterns. Without a star a pattern means the number itself and all below it:
/// `D2M-12.1` is no beginning of `D2M-12.10a`.
fn chosen(only: &[String], id: &str) -> bool {
    let means = |pattern: &String| {
        if pattern.contains('*') {
            return matches(pattern, id);
        }
        let ends_in_digit = pattern.ends_with(|c: char| c.is_ascii_digit());
        id.strip_prefix(pattern.as_str())
            .is_some_and(|rest| !(ends_in_digit && rest.starts_with(|c: char| c.is_ascii_digit())))
    };
    only.is_empty() || only.iter().any(means)
}

/// Whether the pieces between the stars stand in the text, in their order.
fn matches(pattern: &str, text: &str) -> bool {
    let Some((head, tail)) = pattern.split_once('*') else { return pattern == text };
    let Some(rest) = text.strip_prefix(head) else { return false };
    rest.char_indices()
        .map(|(at, _)| at)
        .chain([rest.len()])
        .any(|at| rest.get(at..).is_some_and(|rest| matches(tail, rest)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pattern_means_a_number_what_is_below_it_or_what_its_stars_allow() {
        let means = |pattern: &str, id| chosen(&[pattern.to_owned()], id);
        assert!(chosen(&[], "D2M-12.1a"));
        for (pattern, id, expected) in [
            ("D2M-12.1", "D2M-12.1a", true),
            ("D2M-12.1", "D2M-12.10a", false),
            ("D2M-12", "D2M-12.10a", true),
            ("D2M-1", "D2M-12.10a", false),
            ("D2M", "D2M-12.10a", true),
            ("D2M-A*", "D2M-A1a", true),
            ("*/proxy", "CSP-13.5a/proxy", true),
            ("*/proxy", "CSP-13.5a/tcp", false),
            ("CSP*5*tcp", "CSP-13.5a/tcp", true),
            ("CSP-13.5a", "D2M-A1a", false),
        ] {
            assert_eq!(means(pattern, id), expected, "{pattern} {id}");
        }
    }
}
