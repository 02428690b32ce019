//! `heliostat decode`: names every field of a frame, a URL, a close code, and of all frames of a capture.

use std::fs::File;
use std::io::{self, BufReader, BufWriter, Cursor, IsTerminal as _, Read, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, UNIX_EPOCH};

use bytes::Bytes;
use miette::{IntoDiagnostic as _, Result, WrapErr as _, miette};

use serde_json::{Value, json};

use super::captured::Devices;
use super::describe::{self, Described, From};
use super::keyfile;
use crate::capture::{self, ClosedBy, Direction, Entry, Event, Observer, Reader, Tail};
use crate::client::GroupKey;
use crate::wire::d2m::{ClientUrlInfo, CloseCode, PayloadType};

/// Name every field of a frame, a URL, a close code, or a capture
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  heliostat decode 830000000000000007000000
  heliostat decode 4115
  heliostat decode wss://localhost:8443/0a202fd1...026130
  heliostat decode --key group.key session.d2mcap
  heliostat decode --json < frames.txt

A file is a capture, as `device --capture`, `simulate --capture` and `admin capture` write it, or has one frame per
line, in hex; spaces and colons do not matter, nor does what comes before the last tab of a line, so that what
--hex prints is understood. Exit status 1 says that something could not be decoded, or that a capture is cut or
damaged.")]
pub struct Args {
    /// A frame in hex, a URL or path, a close code, or the file of a capture; standard input when absent or `-`
    input: Option<String>,
    /// Read a file instead: a capture, lines like standard input, or else one frame in binary
    #[arg(long, value_name = "FILE", conflicts_with = "input")]
    file: Option<PathBuf>,
    /// Who said it; the payload type tells if this does not
    #[arg(long, value_enum)]
    from: Option<From>,
    /// Open what is sealed, with the device group key in this file (64 hex digits)
    #[arg(long, visible_alias = "key", value_name = "FILE")]
    group_key: Option<PathBuf>,
    /// Print one JSON object per line
    #[arg(long)]
    json: bool,
    /// Print the frames of a capture in hex, one per line
    #[arg(long, conflicts_with = "json")]
    hex: bool,
}

/// Decodes what the arguments name.
///
/// # Errors
/// When a file cannot be read, or nothing can be written.
#[expect(clippy::unused_async, reason = "all tools are run the same way")]
pub async fn run(args: Args) -> Result<ExitCode> {
    let key = args.group_key.as_deref().map(keyfile::load).transpose()?;
    let inputs = match source(&args)? {
        None => vec![Input::Text(args.input.clone().unwrap_or_default())],
        Some(Source::Capture(reader)) => {
            let mut out = BufWriter::new(io::stdout().lock());
            let look = if args.json {
                Look::Json
            } else if args.hex {
                Look::Hex
            } else {
                Look::People { colours: super::colours() }
            };
            let good = print(reader, look, key.as_ref(), &mut out)?;
            out.flush().into_diagnostic()?;
            return Ok(if good { ExitCode::SUCCESS } else { ExitCode::FAILURE });
        }
        Some(Source::Other(bytes)) => inputs(bytes),
    };
    let mut out = io::stdout().lock();
    let mut good = true;
    if inputs.is_empty() {
        return Err(miette!(
            help = "give a frame in hex, a URL, a close code or a capture, or see --help",
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

enum Source {
    Capture(Reader<Box<dyn Read>>),
    Other(Vec<u8>),
}

/// What is to be read; nothing when the input is itself what is to be decoded.
fn source(args: &Args) -> Result<Option<Source>> {
    let open = |path: &Path| File::open(path).into_diagnostic().wrap_err_with(|| cannot_be_read(path));
    let (mut from, named): (Box<dyn Read>, _) = match (&args.file, args.input.as_deref()) {
        (Some(path), _) => (Box::new(BufReader::new(open(path)?)), false),
        (None, Some(input)) if input != "-" => match Path::new(input) {
            path if path.is_file() => (Box::new(BufReader::new(open(path)?)), true),
            _ => return Ok(None),
        },
        (None, _) => {
            if io::stdin().is_terminal() {
                eprintln!("Reading lines; end them with Ctrl-D. `heliostat decode --help` tells what is understood.");
            }
            (Box::new(io::stdin().lock()), false)
        }
    };
    let mut head = Vec::new();
    from.by_ref().take(capture::MAGIC.len() as u64).read_to_end(&mut head).into_diagnostic()?;
    if head == capture::MAGIC {
        let whole: Box<dyn Read> = Box::new(Cursor::new(head).chain(from));
        return Ok(Some(Source::Capture(Reader::new(whole).into_diagnostic()?)));
    }
    if named {
        // A file that is called like a frame is no reason not to decode the frame.
        return Ok(None);
    }
    from.read_to_end(&mut head).into_diagnostic()?;
    Ok(Some(Source::Other(head)))
}

fn cannot_be_read(path: &Path) -> String {
    format!("{} cannot be read", path.display())
}

fn inputs(bytes: Vec<u8>) -> Vec<Input> {
    match std::str::from_utf8(&bytes) {
        // A frame in binary begins with a payload type and three zeros, which is no text anybody writes.
        Ok(text) if !text.contains('\0') => {
            let frames = text.lines().map(|line| line.rsplit('\t').next().unwrap_or(line).trim());
            frames.filter(|line| !line.is_empty()).map(|line| Input::Text(line.to_owned())).collect()
        }
        _ => vec![Input::Binary(bytes.into())],
    }
}

/// How a capture is shown.
#[derive(Clone, Copy)]
enum Look {
    People { colours: bool },
    Json,
    Hex,
}

const FROM_DEVICE: &str = "32";
const TO_DEVICE: &str = "36";
const CONNECTION: &str = "33";

/// Prints a whole capture; says whether all of it was there and could be decoded.
fn print(mut reader: Reader<impl Read>, look: Look, key: Option<&GroupKey>, out: &mut impl Write) -> Result<bool> {
    let header = reader.header();
    let began = || humantime::format_rfc3339_millis(UNIX_EPOCH + Duration::from_millis(header.wall_ms));
    let by = match header.observer {
        Observer::Device => "devices",
        Observer::Mediator => "the mediator",
    };
    match look {
        Look::People { .. } => writeln!(out, "-- recorded by {by}, beginning {}", began()),
        Look::Json => writeln!(out, "{}", json!({ "event": "capture", "recorded by": by, "began": header.wall_ms })),
        Look::Hex => Ok(()),
    }
    .into_diagnostic()?;
    let (mut devices, mut good) = (Devices::default(), true);
    while let Some(entry) = reader.next_entry().into_diagnostic()? {
        devices.see(&entry);
        let text = match look {
            Look::People { colours } => for_people(&entry, &devices, key, colours, &mut good),
            Look::Json => format!("{}\n", for_programs(&entry, &devices, key, &mut good)),
            Look::Hex => in_hex(&entry, &devices),
        };
        out.write_all(text.as_bytes()).into_diagnostic()?;
    }
    good &= matches!(reader.tail(), Tail::Ended(_) | Tail::Unended);
    let tail = reader.tail().to_string();
    match look {
        Look::People { .. } => {
            if reader.passed_over() > 0 {
                writeln!(out, "-- records of kinds that are not known here: {}", reader.passed_over())
                    .into_diagnostic()?;
            }
            writeln!(out, "-- the end: {tail}")
        }
        Look::Json => writeln!(
            out,
            "{}",
            json!({ "event": "end", "why": tail, "whole": good, "not known": reader.passed_over() })
        ),
        Look::Hex => Ok(()),
    }
    .into_diagnostic()?;
    Ok(good)
}

/// Time, connection, device and direction.
fn stamp(at: Duration, track: capture::Track, devices: &Devices, arrow: &str) -> String {
    let device = devices.of(track).map_or_else(|| "-".repeat(16), |device| device.to_string());
    format!("{:>4}.{:06} #{:<2} {device} {arrow}", at.as_secs(), at.subsec_micros(), track.0)
}

const fn arrow(direction: Direction) -> &'static str {
    match direction {
        Direction::FromDevice => "->",
        Direction::ToDevice => "<-",
    }
}

fn described(frame: &capture::Frame, direction: Direction, key: Option<&GroupKey>) -> Result<Described, String> {
    let from = match direction {
        Direction::FromDevice => From::Device,
        Direction::ToDevice => From::Mediator,
    };
    let mut described = describe::container(&frame.kept, Some(from), key).map_err(|bad| bad.to_string())?;
    if frame.withheld() > 0 {
        described.not_kept(frame.withheld());
    }
    Ok(described)
}

fn closed(by: ClosedBy, code: Option<u16>, reason: &str) -> String {
    let meaning = code.and_then(CloseCode::from_code).map(|code| format!(": {}", code.meaning())).unwrap_or_default();
    let code = code.map_or_else(|| "without a code".to_owned(), |code| format!("with {code} ({reason:?})"));
    match by {
        ClosedBy::Nobody => "lost".to_owned(),
        ClosedBy::Device => format!("closed by the device {code}{meaning}"),
        ClosedBy::Mediator => format!("closed by the mediator {code}{meaning}"),
    }
}

fn for_people(entry: &Entry, devices: &Devices, key: Option<&GroupKey>, colours: bool, good: &mut bool) -> String {
    let paint = |colour, text: &str| if colours { format!("\x1b[{colour}m{text}\x1b[0m") } else { text.to_owned() };
    match &entry.event {
        Event::Connect { track, server_group, earlier, .. } => {
            let how = if *earlier { "was open before" } else { "opened" };
            let stamp = stamp(entry.at, *track, devices, "==");
            paint(CONNECTION, &format!("{stamp} {how}, server group {}", server_group.as_str())) + "\n"
        }
        Event::Frame { track, direction, frame } => {
            let stamp = stamp(entry.at, *track, devices, arrow(*direction));
            let colour = if *direction == Direction::FromDevice { FROM_DEVICE } else { TO_DEVICE };
            match described(frame, *direction, key) {
                Ok(described) => {
                    let table = described.table();
                    let (title, fields) = table.split_once('\n').unwrap_or((&table, ""));
                    format!("{}\n{fields}", paint(colour, &format!("{stamp} {title}")))
                }
                Err(why) => {
                    *good = false;
                    format!("{}\n  {}\n", paint(colour, &format!("{stamp} {why}")), hex::encode(&frame.kept))
                }
            }
        }
        Event::Close { track, by, code, reason } => {
            let stamp = stamp(entry.at, *track, devices, "==");
            paint(CONNECTION, &format!("{stamp} {}", closed(*by, *code, reason))) + "\n"
        }
        Event::End(_) => String::new(),
    }
}

fn for_programs(entry: &Entry, devices: &Devices, key: Option<&GroupKey>, good: &mut bool) -> Value {
    let at = u64::try_from(entry.at.as_micros()).unwrap_or(u64::MAX);
    let device = |track| devices.of(track).map(|device| device.to_string());
    match &entry.event {
        Event::Connect { track, server_group, earlier, .. } => json!({
            "event": "connect", "time_us": at, "connection": track.0, "device": device(*track),
            "server group": server_group.as_str(), "open before": earlier,
        }),
        Event::Frame { track, direction, frame } => {
            let said = match described(frame, *direction, key) {
                Ok(described) => described.json(),
                Err(why) => {
                    *good = false;
                    json!({ "error": why })
                }
            };
            let from = if *direction == Direction::FromDevice { "device" } else { "mediator" };
            let mut line = json!({
                "event": "frame", "time_us": at, "connection": track.0, "device": device(*track),
                "from": from, "length": frame.len, "hex": hex::encode(&frame.kept),
            });
            if let (Some(line), Value::Object(said)) = (line.as_object_mut(), said) {
                line.extend(said);
            }
            line
        }
        Event::Close { track, by, code, reason } => {
            let by = match by {
                ClosedBy::Nobody => None,
                ClosedBy::Device => Some("device"),
                ClosedBy::Mediator => Some("mediator"),
            };
            json!({
                "event": "close", "time_us": at, "connection": track.0, "device": device(*track),
                "by": by, "code": code, "reason": reason,
            })
        }
        Event::End(end) => json!({ "event": "ended", "time_us": at, "why": end.meaning() }),
    }
}

/// Frames alone, as `decode` reads them.
fn in_hex(entry: &Entry, devices: &Devices) -> String {
    match &entry.event {
        Event::Frame { track, direction, frame } => {
            let stamp = stamp(entry.at, *track, devices, arrow(*direction));
            format!("{stamp}\t{}\n", hex::encode(&frame.kept))
        }
        Event::Connect { .. } | Event::Close { .. } | Event::End(_) => String::new(),
    }
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
