//! Keeps the drawing in `src/lib.rs` true: arrows point down, and clocks are read in one place.
//!
//! Reads the sources as text: comments and literals are blanked, then every path that starts at `crate` or climbs there by
//! `super` is an arrow from the module that holds it to the module it names.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::path::{Path, PathBuf};

/// The floors, from the ground up.
const FLOORS: [&[&str]; 6] = [
    &["wire", "crypto", "time", "net"],
    &["group"],
    &["store"],
    &["hub"],
    &["session", "upstream", "client"],
    &["main", "lib", "cli", "config", "server", "tools"],
];
/// The floor of doors: the only one that knows the chat rooms.
const DOORS: usize = 5;
/// The floor whose modules are strangers to each other.
const STRANGERS: usize = 4;
/// The wing of chat rooms stands on the ground floor alone.
const WING: &str = "chat";
const ROOMS: [&str; 5] = ["csp", "chatos", "skynet", "dm", "toxgroup"];
/// Arrows that the rules would forbid, with their reasons.
const EXCEPTIONS: [(&str, &[&str]); 2] = [
    ("session", &["upstream"]),           // a session owns its pipe to the chat server
    ("client", &["chat", "csp", "wire"]), // the device side speaks CSP, too
];
/// What reads a clock.
const CLOCKS: [&str; 4] = ["Instant::now", "SystemTime::now", "OffsetDateTime::now_utc", "UNIX_EPOCH.elapsed"];

fn floor(module: &str) -> Option<usize> {
    FLOORS.iter().position(|floor| floor.contains(&module))
}

/// Whether code in module `from` may name `to`; both are paths below the crate's root.
fn judge(from: &[String], to: &[String]) -> Result<(), &'static str> {
    let [(from_top, to_top), (from_room, to_room)] =
        [0, 1].map(|i| (from.get(i).map_or("", String::as_str), to.get(i).map_or("", String::as_str)));
    let excepted =
        |&(a, b): &(&str, &[&str])| from_top == a && to.len() >= b.len() && to.iter().zip(b).all(|(a, b)| a == b);
    if from_top == to_top {
        let other_room =
            from_top == WING && ROOMS.contains(&from_room) && ROOMS.contains(&to_room) && from_room != to_room;
        return if other_room { Err("chat rooms do not know each other") } else { Ok(()) };
    }
    if EXCEPTIONS.iter().any(excepted) {
        return Ok(());
    }
    match (floor(from_top), floor(to_top)) {
        (Some(DOORS), None) if to_top == WING => Ok(()),
        (_, None) if to_top == WING => Err("only the doors know the chat rooms"),
        (None, Some(0)) if from_top == WING => Ok(()),
        (None, Some(_)) if from_top == WING => Err("chat rooms stand on the ground floor alone"),
        (Some(from), Some(to)) if from < to => Err("the arrow points up"),
        (Some(STRANGERS), Some(STRANGERS)) => Err("modules on this floor do not know each other"),
        (Some(_), Some(_)) => Ok(()),
        _ => Err("a module without a floor: give it one in tests/tidy.rs and src/lib.rs"),
    }
}

/// Blanks comments, strings and characters; what remains has the same lines.
fn code_only(source: &str) -> String {
    let mut out = String::with_capacity(source.len());
    let mut rest = source;
    while let Some(c) = rest.chars().next() {
        let skipped = if rest.starts_with("//") {
            rest.find('\n').unwrap_or(rest.len())
        } else if rest.starts_with("/*") {
            rest.find("*/").map_or(rest.len(), |end| end + 2)
        } else if c == '"' {
            string_end(rest)
        } else if let Some(hashes) =
            raw_string(rest).filter(|_| !out.ends_with(|c: char| c.is_alphanumeric() || c == '_'))
        {
            let end = format!("\"{}", "#".repeat(hashes));
            let body = hashes + 2;
            rest[body..].find(&end).map_or(rest.len(), |at| body + at + end.len())
        } else if c == '\'' {
            character_end(rest)
        } else {
            0
        };
        if skipped == 0 {
            out.push(c);
            rest = &rest[c.len_utf8()..];
        } else {
            out.extend(rest[..skipped].chars().map(|c| if c == '\n' { c } else { ' ' }));
            rest = &rest[skipped..];
        }
    }
    out
}

fn string_end(rest: &str) -> usize {
    let mut escaped = false;
    for (at, c) in rest.char_indices().skip(1) {
        match c {
            _ if escaped => escaped = false,
            '\\' => escaped = true,
            '"' => return at + 1,
            _ => {}
        }
    }
    rest.len()
}

/// The number of hashes, if a raw string starts here.
fn raw_string(rest: &str) -> Option<usize> {
    let after = rest.strip_prefix('r')?;
    let hashes = after.bytes().take_while(|&b| b == b'#').count();
    after[hashes..].starts_with('"').then_some(hashes)
}

/// The end of a character literal; 0 for a lifetime.
fn character_end(rest: &str) -> usize {
    let mut chars = rest.char_indices().skip(1);
    match chars.next() {
        Some((_, '\\')) => rest[2..].char_indices().skip(1).find(|&(_, c)| c == '\'').map_or(0, |(at, _)| at + 3),
        Some(_) => chars.next().filter(|&(_, c)| c == '\'').map_or(0, |(at, _)| at + 1),
        None => 0,
    }
}

/// Words, `::` and single characters, with the lines they are on.
fn tokens(code: &str) -> Vec<(usize, &str)> {
    let mut out = Vec::new();
    for (number, line) in code.lines().enumerate() {
        let mut rest = line.trim_start();
        while let Some(c) = rest.chars().next() {
            let word = rest.find(|c: char| !c.is_alphanumeric() && c != '_').unwrap_or(rest.len());
            let len = if rest.starts_with("::") {
                2
            } else if word > 0 {
                word
            } else {
                c.len_utf8()
            };
            out.push((number + 1, &rest[..len]));
            rest = rest[len..].trim_start();
        }
    }
    out
}

/// Every path below the crate's root that `code` in `module` names, with its line.
fn arrows(module: &[String], code: &str) -> Vec<(usize, Vec<String>)> {
    let tokens = tokens(code);
    let text = |at: usize| tokens.get(at).map_or("", |&(_, text)| text);
    let mut out = Vec::new();
    // For each open brace: whether it is that of an inline module.
    let mut braces: Vec<bool> = Vec::new();
    for at in 0..tokens.len() {
        match text(at) {
            "{" => braces.push(at >= 2 && text(at - 2) == "mod"),
            "}" => drop(braces.pop()),
            "crate" | "heliostat" if text(at + 1) == "::" => paths(&tokens, at + 2, &[], &mut out),
            "super" if text(at + 1) == "::" && text(at.wrapping_sub(1)) != "::" => {
                let mut here = module.to_vec();
                here.extend(braces.iter().filter(|&&inline| inline).map(|_| "inline".to_owned()));
                let mut next = at;
                while text(next) == "super" {
                    here.pop();
                    next += 2;
                }
                if here.is_empty() {
                    paths(&tokens, next, &[], &mut out);
                }
            }
            _ => {}
        }
    }
    out
}

/// Reads `a::b`, or `{a::b, c::{d, e}}`, beginning at token `at`; returns the token behind it.
fn paths(tokens: &[(usize, &str)], at: usize, prefix: &[String], out: &mut Vec<(usize, Vec<String>)>) {
    fn read(tokens: &[(usize, &str)], mut at: usize, prefix: &[String], out: &mut Vec<(usize, Vec<String>)>) -> usize {
        let text = |at: usize| tokens.get(at).map_or("", |&(_, text)| text);
        let line = tokens.get(at).map_or(0, |&(line, _)| line);
        let mut path = prefix.to_vec();
        loop {
            if text(at) == "{" {
                at += 1;
                while !matches!(text(at), "}" | "") {
                    at = read(tokens, at, &path, out).max(at + 1);
                    at += usize::from(text(at) == ",");
                }
                return at + 1;
            }
            if text(at) != "self" {
                path.push(text(at).to_owned());
            }
            if text(at + 1) != "::" || text(at + 2) == "<" {
                break;
            }
            at += 2;
        }
        out.push((line, path));
        at + 1
    }
    read(tokens, at, prefix, out);
}

/// The module a file holds, as a path below the crate's root.
fn module_of(file: &Path) -> Vec<String> {
    let mut module: Vec<String> =
        file.with_extension("").iter().map(|part| part.to_str().unwrap().to_owned()).collect();
    if module.last().is_some_and(|last| last == "mod") {
        module.pop();
    }
    module
}

fn findings(file: &Path, source: &str) -> Vec<String> {
    let (module, code) = (module_of(file), code_only(source));
    let mut out = Vec::new();
    for (line, to) in arrows(&module, &code) {
        if let Err(why) = judge(&module, &to) {
            out.push(format!("src/{}:{line}: {}: {why}", file.display(), to.join("::")));
        }
    }
    if file != Path::new("time.rs") {
        for (number, line) in code.lines().enumerate() {
            if let Some(clock) = CLOCKS.iter().find(|&&clock| line.contains(clock)) {
                out.push(format!("src/{}:{}: {clock}: clocks are read in src/time.rs", file.display(), number + 1));
            }
        }
    }
    out
}

fn sources(dir: &Path, out: &mut Vec<PathBuf>) {
    for entry in dir.read_dir().unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            sources(&path, out);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            out.push(path);
        }
    }
}

#[test]
fn arrows_point_down_and_clocks_are_read_in_one_place() {
    let src = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut files = Vec::new();
    sources(&src, &mut files);
    files.sort();
    assert!(files.len() > 10, "the sources were found");
    let found: Vec<_> = files
        .iter()
        .flat_map(|file| findings(file.strip_prefix(&src).unwrap(), &std::fs::read_to_string(file).unwrap()))
        .collect();
    assert!(found.is_empty(), "\n{}", found.join("\n"));
}

#[test]
fn every_kind_of_wrong_arrow_is_found() {
    let cases = [
        ("group/mod.rs", "use crate::store::Store;", Some("points up")),
        ("group/mod.rs", "fn f() -> crate::hub::Seat {}", Some("points up")),
        ("group/mod.rs", "use crate::{time::Now, store::{Store, StoreError}};", Some("points up")),
        ("group/mod.rs", "use super::store::Store;", Some("points up")),
        ("net/tls.rs", "mod tests { use super::super::super::hub::Hub; }", Some("points up")),
        ("net/tls.rs", "mod tests { use super::super::listen; }", None),
        ("net/tls.rs", "fn f() { g() } use super::super::hub::Hub;", Some("points up")),
        ("store/mod.rs", "use crate::group::record::Seq;", None),
        ("wire/d2m/url.rs", "use crate::crypto::boxes;", None),
        ("session/mod.rs", "use crate::upstream::Upstream;", None),
        ("upstream/mod.rs", "use crate::session::Session;", Some("do not know each other")),
        ("client/mod.rs", "use crate::chat::csp::wire::Frame;", None),
        ("client/mod.rs", "use crate::chat::csp::state::State;", Some("only the doors")),
        ("session/mod.rs", "use crate::chat::csp::wire::Frame;", Some("only the doors")),
        ("cli.rs", "use crate::chat::csp;", None),
        ("main.rs", "use heliostat::cli;", None),
        ("chat/csp/serve.rs", "use crate::net::listen;", None),
        ("chat/csp/serve.rs", "use crate::store::Store;", Some("ground floor")),
        ("chat/csp/serve.rs", "use crate::config::Config;", Some("ground floor")),
        ("chat/dm/serve.rs", "use crate::chat::csp::wire;", Some("know each other")),
        ("group/mod.rs", "use crate::attic::Box;", Some("without a floor")),
        ("group/mod.rs", "// use crate::store::Store;\n/// [`crate::hub`]\n/* crate::hub */", None),
        ("group/mod.rs", "const A: &str = \"crate::hub\\\" crate::hub\"; const B: &str = r#\"\"crate::hub\"#;", None),
        ("group/mod.rs", "const Q: char = '\"'; use crate::hub::Hub; const R: char = '\"';", Some("points up")),
        ("group/mod.rs", "fn f<'a>(x: &'a str) { let _ = '\\''; crate::hub::f() }", Some("points up")),
        ("group/mod.rs", "fn f() { let t = Instant::now(); }", Some("clocks")),
        ("time.rs", "fn f() { let t = Instant::now(); }", None),
    ];
    for (file, source, expected) in cases {
        let found = findings(Path::new(file), source);
        match expected {
            None => assert!(found.is_empty(), "{file}: {source}: {found:?}"),
            Some(why) => {
                assert!(!found.is_empty() && found.iter().all(|it| it.contains(why)), "{file}: {source}: {found:?}")
            }
        }
    }
}
