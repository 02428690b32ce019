//! `heliostat decode`: names every field of a frame, a URL, a close code.

use std::io::{IsTerminal as _, Read as _, Write as _};
use std::path::PathBuf;
use std::process::ExitCode;

use bytes::Bytes;
use miette::{IntoDiagnostic as _, Result, WrapErr as _, miette};

use super::describe::{self, Described, From};
use super::keyfile;
use crate::client::GroupKey;
use crate::wire::d2m::{ClientUrlInfo, PayloadType};

/// Name every field of a frame, a URL, or a close code
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  heliostat decode 830000000000000007000000
  heliostat decode 4115
  heliostat decode wss://localhost:8443/0a202fd1...026130
  heliostat decode --group-key group.key --json < capture.txt

A capture has one frame per line, in hex; spaces and colons do not matter, nor does what comes before the last
tab of a line. Exit status 1 says that something could not be decoded.")]
pub struct Args {
    /// A frame in hex, a URL or path, or a close code; standard input when absent or `-`
    input: Option<String>,
    /// Read a file instead: lines like standard input, or else one frame in binary
    #[arg(long, value_name = "FILE", conflicts_with = "input")]
    file: Option<PathBuf>,
    /// Who said it; the payload type tells if this does not
    #[arg(long, value_enum)]
    from: Option<From>,
    /// Open what is sealed, with the device group key in this file (64 hex digits)
    #[arg(long, value_name = "FILE")]
    group_key: Option<PathBuf>,
    /// Print one JSON object per line
    #[arg(long)]
    json: bool,
}

/// Decodes what the arguments name.
///
/// # Errors
/// When a file cannot be read, or nothing can be written.
#[expect(clippy::unused_async, reason = "all tools are run the same way")]
pub async fn run(args: Args) -> Result<ExitCode> {
    let key = args.group_key.as_deref().map(keyfile::load).transpose()?;
    let mut out = std::io::stdout().lock();
    let mut good = true;
    let inputs = inputs(&args)?;
    if inputs.is_empty() {
        return Err(miette!(
            help = "give a frame in hex, a URL or a close code, or see --help",
            "there is nothing to decode"
        ));
    }
    for input in inputs {
        let described = input.describe(args.from, key.as_ref());
        good &= described.is_ok();
        let text = match (described, args.json) {
            (Ok(described), false) => described.table(),
            (Ok(described), true) => format!("{}\n", described.json()),
            (Err(why), false) => format!("{}: {why}\n", input.shown()),
            (Err(why), true) => format!("{}\n", serde_json::json!({ "input": input.shown(), "error": why })),
        };
        out.write_all(text.as_bytes()).into_diagnostic()?;
    }
    out.flush().into_diagnostic()?;
    Ok(if good { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

enum Input {
    Text(String),
    Binary(Bytes),
}

fn inputs(args: &Args) -> Result<Vec<Input>> {
    let bytes = match (&args.file, args.input.as_deref()) {
        (None, Some(input)) if input != "-" => return Ok(vec![Input::Text(input.to_owned())]),
        (Some(path), _) => {
            std::fs::read(path).into_diagnostic().wrap_err_with(|| format!("{} cannot be read", path.display()))?
        }
        (None, _) => {
            if std::io::stdin().is_terminal() {
                eprintln!("Reading lines; end them with Ctrl-D. `heliostat decode --help` tells what is understood.");
            }
            let mut bytes = Vec::new();
            std::io::stdin().read_to_end(&mut bytes).into_diagnostic()?;
            bytes
        }
    };
    Ok(match std::str::from_utf8(&bytes) {
        // A frame in binary begins with a payload type and three zeros, which is no text anybody writes.
        Ok(text) if !text.contains('\0') => {
            let frames = text.lines().map(|line| line.rsplit('\t').next().unwrap_or(line).trim());
            frames.filter(|line| !line.is_empty()).map(|line| Input::Text(line.to_owned())).collect()
        }
        _ => vec![Input::Binary(bytes.into())],
    })
}

impl Input {
    fn shown(&self) -> String {
        match self {
            Self::Text(text) => text.chars().take(64).collect(),
            Self::Binary(bytes) => format!("{} bytes", bytes.len()),
        }
    }

    fn describe(&self, from: Option<From>, key: Option<&GroupKey>) -> Result<Described, String> {
        let frame = match self {
            Self::Binary(bytes) => bytes.clone(),
            Self::Text(text) => match text.parse::<u16>() {
                // Two bytes of hex are no container, so four digits are a number.
                Ok(code) if text.len() == 4 => return Ok(describe::close_code(code)),
                _ if text.contains('/') => {
                    let path = text.split(['?', '#']).next().unwrap_or(text);
                    return ClientUrlInfo::from_path(path).map(|info| describe::url(&info)).map_err(|e| e.to_string());
                }
                _ => {
                    let digits: String = text.chars().filter(|c| !c.is_whitespace() && *c != ':').collect();
                    hex::decode(&digits).map_err(|_| "neither hex, nor a URL, nor a close code".to_owned())?.into()
                }
            },
        };
        let known = frame.first().is_some_and(|&kind| PayloadType(kind).name().is_some());
        match (known, self) {
            // The hex of a URL looks like a container of a type that does not exist.
            (false, Self::Text(text)) if ClientUrlInfo::from_path(text).is_ok() => {
                ClientUrlInfo::from_path(text).map(|info| describe::url(&info)).map_err(|bad| bad.to_string())
            }
            _ => describe::container(&frame, from, key).map_err(|bad| bad.to_string()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::crypto::Secret;

    fn table(text: &str, key: Option<&GroupKey>) -> String {
        Input::Text(text.to_owned()).describe(None, key).unwrap().table()
    }

    fn vector_key() -> GroupKey {
        GroupKey::new(Secret::new(std::array::from_fn(|at| u8::try_from(at).unwrap())))
    }

    const REFLECTED: &str = "820000001000000007000000c869e5cf8b010000f1db890743fe68cf790d152fadeb3edab9b6cc8d267f1cc7\
        8ce7804ac2ca7e30e613ff516762b93bc4a5dca86c07e261e44e18abc44c7f";

    #[test]
    fn every_field_of_a_frame_has_its_name() {
        insta::assert_snapshot!(table(REFLECTED, Some(&vector_key())), @r"
        reflected
          payload type   0x82 reflected
          reserved       000000
          header-length  16
          ephemeral      false
          reflected-id   7
          time           1700000000456 (2023-11-14T22:13:20.456Z)
          envelope       f1db890743fe68cf790d152fadeb3edab9b6cc8d267f1cc78ce7804ac2ca7e30e613ff516762b93bc4a5dca86c07e261e44e18abc44c7f (55 bytes)
            opened       0a02000069efcdab89674523011803 (15 bytes)
        ");
    }

    #[test]
    fn whoever_has_another_key_is_told() {
        let text = table(REFLECTED, Some(&GroupKey::generate()));
        assert!(text.contains("not with this group key"), "{text}");
    }

    #[test]
    fn numbers_and_urls_and_spaced_hex_are_recognised() {
        let segment = "0a202fd17ba2f9c2c31e52f0acbba8ff741ac89b3b58a8c208a25ad4a625ea1387231a026130";
        for url in [segment.to_owned(), format!("wss://m.example//2f/{segment}?x=1"), format!("/{segment}")] {
            assert!(table(&url, None).contains("server group        a0"), "{url}");
        }
        assert!(table("4115", None).contains("not in the state the device expected"));
        assert!(table("83:00:00:00 00000000 07000000", None).contains("reflected-id  7"));
    }

    #[test]
    fn the_payload_type_tells_who_said_it_unless_one_is_told() {
        let described = |from| describe::container(&Bytes::from_static(&[0x12, 0, 0, 0]), from, None).unwrap();
        assert_eq!(described(None), described(Some(From::Mediator)));
        assert!(described(Some(From::Device)).table().contains("only the other side may send it"));
    }

    #[test]
    fn what_cannot_be_decoded_says_why() {
        let why = |text: &str| Input::Text(text.to_owned()).describe(None, None).unwrap_err();
        assert_eq!(why("xyz"), "neither hex, nor a URL, nor a close code");
        assert_eq!(why("800000"), "a container has at least 4 bytes");
        assert_eq!(why("8000000007000000"), "reflect: truncated");
        assert_eq!(why("800000000700000000000000"), "reflect: bad header-length");
    }
}
