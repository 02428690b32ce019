//! Keeps what is written about the code true: the drawing in `src/lib.rs` (arrows point down, and clocks are read in one
//! place), the index of clauses in `docs/spec.md`, and what the README says.
//!
//! Reads the sources as text: comments and literals are blanked, then every path that starts at `crate` or climbs there by
//! `super` is an arrow from the module that holds it to the module it names, and every function behind a test's attribute
//! is a test.

#![expect(clippy::unwrap_used, clippy::indexing_slicing, reason = "a test that cannot go on fails")]

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use heliostat::config::Config;
use heliostat::wire::d2m::{CloseCode, Reconnect};

/// The floors, from the ground up.
const FLOORS: [&[&str]; 6] = [
    &["wire", "crypto", "time", "files", "net", "metrics", "log", "capture"],
    &["group"],
    &["store"],
    &["hub"],
    &["session", "upstream", "cluster", "client"],
    &["main", "lib", "cli", "config", "logging", "server", "tools", "traces", "testkit"],
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

/// A protocol's clauses: its name, the section that is its checklist and the length of that, the letter of its decisions
/// and their number.
const PROTOCOLS: [(&str, u32, u32, char, u32); 2] = [("D2M", 12, 21, 'A', 38), ("CSP", 13, 17, 'C', 15)];
/// The macro in whose braces tests are listed by name: one for each engine that has to keep a promise.
const TESTS_LISTED_IN: &str = "promised_by_both";
/// How a clause without a test begins its reason.
const EXCEPTION: &str = "exception: ";

fn checklist() -> impl Iterator<Item = String> {
    PROTOCOLS.iter().flat_map(|(name, section, lines, ..)| (1..=*lines).map(move |n| format!("{name}-{section}.{n}")))
}

fn decisions() -> impl Iterator<Item = String> {
    PROTOCOLS.iter().flat_map(|(name, _, _, letter, count)| (1..=*count).map(move |n| format!("{name}-{letter}{n}")))
}

/// The cells of every table row that begins with a clause or a section.
fn rows(index: &str) -> Vec<Vec<&str>> {
    index
        .lines()
        .filter_map(|line| line.strip_prefix("| ")?.strip_suffix(" |"))
        .map(|line| line.split(" | ").map(str::trim).collect::<Vec<_>>())
        .filter(|cells| {
            PROTOCOLS.iter().any(|(name, ..)| cells[0].strip_prefix(name).is_some_and(|n| n.starts_with('-')))
        })
        .collect()
}

/// The clauses that a test's name carries: `d2m_12_7_...`, `d2m_a22_...`, `csp_13_6_..._and_13_7_...`.
fn clauses_of(test: &str) -> Vec<String> {
    let words: Vec<&str> = test.split('_').collect();
    let is_number = |word: &str| !word.is_empty() && word.bytes().all(|byte| byte.is_ascii_digit());
    let Some((name, section, ..)) = PROTOCOLS.iter().find(|(name, ..)| name.to_lowercase() == words[0]) else {
        return Vec::new();
    };
    let section = section.to_string();
    let first = match words[1..] {
        [a, b, ..] if is_number(a) && is_number(b) => Some(format!("{name}-{a}.{b}")),
        [a, ..] if is_number(a) => Some(format!("{name}-{a}")),
        [a, ..] if a.len() > 1 && is_number(&a[1..]) => Some(format!("{name}-{}", a.to_uppercase())),
        _ => None,
    };
    let others = words.windows(3).filter(|words| words[0] == "and" && words[1] == section && is_number(words[2]));
    first.into_iter().chain(others.map(|words| format!("{name}-{section}.{}", words[2]))).collect()
}

/// The names of all tests in a source.
fn tests_in(source: &str) -> Vec<String> {
    let code = code_only(source);
    let tokens = tokens(&code);
    let text = |at: usize| tokens.get(at).map_or("", |&(_, text)| text);
    let (mut out, mut is_test) = (Vec::new(), false);
    for at in 0..tokens.len() {
        match text(at) {
            "#" if text(at + 1) == "[" => {
                let head = (at + 2..tokens.len()).take_while(|&at| !matches!(text(at), "(" | "]" | "=")).last();
                is_test |= head.is_some_and(|at| text(at) == "test");
            }
            "fn" if is_test => {
                out.push(text(at + 1).to_owned());
                is_test = false;
            }
            TESTS_LISTED_IN if text(at + 1) == "!" && text(at + 2) == "{" => {
                out.extend((at + 3..).map(text).take_while(|name| !matches!(*name, "}" | "")).map(str::to_owned));
            }
            "{" | ";" => is_test = false,
            _ => {}
        }
    }
    out
}

/// What is wrong between the index and the tests.
fn index_findings(index: &str, tests: &[String]) -> Vec<String> {
    let mut out = Vec::new();
    let (clauses, sections): (Vec<_>, Vec<_>) = rows(index).into_iter().partition(|cells| cells.len() != 2);
    let expected: Vec<String> = checklist().chain(decisions()).collect();
    for clause in &expected {
        let times = clauses.iter().filter(|cells| cells[0] == clause).count();
        if times != 1 {
            out.push(format!("{clause} is in the index {times} times"));
        }
    }
    for cells in &clauses {
        let &[clause, rule, proof] = &cells[..] else {
            out.push(format!("{}: a row has a clause, a rule and a proof", cells[0]));
            continue;
        };
        if !expected.iter().any(|known| known == clause) {
            out.push(format!("{clause}: there is no such clause"));
        }
        if rule.is_empty() {
            out.push(format!("{clause} has no rule"));
        }
        if proof.strip_prefix(EXCEPTION).is_some_and(|reason| !reason.trim().is_empty()) {
            continue;
        }
        let named: Vec<&str> = proof.split('`').skip(1).step_by(2).collect();
        if named.is_empty() {
            out.push(format!("{clause} has neither a test nor an exception with its reason"));
        }
        let missing = named.into_iter().filter(|&name| !tests.iter().any(|test| test == name));
        out.extend(missing.map(|name| format!("{clause}: there is no test {name}")));
    }
    let carried: Vec<(&String, String)> =
        tests.iter().flat_map(|test| clauses_of(test).into_iter().map(move |clause| (test, clause))).collect();
    for (test, clause) in &carried {
        if !expected.contains(clause) && !sections.iter().any(|cells| cells[0] == clause) {
            out.push(format!("{test} carries {clause}, which is not in the index"));
        }
    }
    let proved = checklist().filter(|line| !carried.iter().any(|(_, clause)| clause == line));
    out.extend(proved.map(|line| format!("no test carries {line} in its name")));
    out
}

/// The names of all tests of this crate.
fn all_tests() -> Vec<String> {
    let mut files = Vec::new();
    for dir in ["src", "tests"] {
        sources(&Path::new(env!("CARGO_MANIFEST_DIR")).join(dir), &mut files);
    }
    files.iter().flat_map(|file| tests_in(&std::fs::read_to_string(file).unwrap())).collect()
}

fn read(file: &str) -> String {
    std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join(file)).unwrap()
}

/// The fenced blocks of a language.
fn blocks(markdown: &str, language: &str) -> Vec<String> {
    let mut out = Vec::new();
    let mut lines = markdown.lines();
    while let Some(line) = lines.next() {
        if let Some(found) = line.strip_prefix("```") {
            let block: Vec<&str> = lines.by_ref().take_while(|line| *line != "```").collect();
            if found == language {
                out.push(block.join("\n"));
            }
        }
    }
    out
}

#[test]
fn the_readme_has_one_test_command_and_configurations_that_are_understood() {
    let readme = read("README.md");
    let commands = readme.lines().filter(|line| line.strip_prefix("$ ").unwrap_or(line).starts_with("cargo test"));
    assert_eq!(commands.count(), 1, "what .ci/run runs");
    let configurations = blocks(&readme, "toml");
    assert!(!configurations.is_empty());
    for text in configurations {
        Config::parse("README.md", &text).unwrap();
    }
}

#[test]
fn the_readme_shows_the_rust_that_is_compiled_in_the_documentation() {
    let documented: Vec<String> = read("src/client/mod.rs")
        .lines()
        .filter_map(|line| line.strip_prefix("//!"))
        .map(|line| line.strip_prefix(' ').unwrap_or(line).to_owned())
        .collect();
    let documented = documented.join("\n");
    for block in blocks(&read("README.md"), "rust") {
        assert!(documented.contains(&block), "not in src/client/mod.rs:\n{block}");
    }
}

#[test]
fn the_readme_names_every_close_code_and_what_follows_from_it() {
    let readme = read("README.md");
    for code in CloseCode::ALL {
        let row = format!("| {} |", code.code());
        let rows: Vec<&str> = readme.lines().filter(|line| line.starts_with(&row)).collect();
        let [row] = rows[..] else { panic!("{} is in the table {} times", code.code(), rows.len()) };
        let by_itself = row.contains("reconnect");
        assert_eq!(by_itself, code.reconnect() == Reconnect::Automatic, "{row}");
    }
}

#[test]
fn the_page_for_clients_has_the_bytes_of_the_vectors() {
    let vectors: serde_json::Value = serde_json::from_str(&read("tests/vectors/d2m-csp.json")).unwrap();
    let page = read("docs/clients.md");
    let mut blocks = 0;
    for part in page.split("```d2m ").skip(1) {
        let (name, rest) = part.split_once('\n').unwrap();
        let block = rest.split("```").next().unwrap();
        let bytes: String = block.lines().map(|line| line.split('#').next().unwrap().trim()).collect();
        assert_eq!(Some(bytes.as_str()), vectors["d2m"][0][name].as_str(), "{name}");
        blocks += 1;
    }
    assert!(blocks >= 8, "the handshake and a reflection");
}

#[test]
fn the_page_for_clients_names_every_close_code_its_class_and_how_to_see_it() {
    let page = read("docs/clients.md");
    for code in CloseCode::ALL {
        let number = code.code();
        let start = format!("| {number} |");
        let rows: Vec<&str> = page.lines().filter(|line| line.starts_with(&start)).collect();
        let [row] = rows[..] else { panic!("{number} is in the table {} times", rows.len()) };
        let class = if code.reconnect() == Reconnect::Automatic { "| by itself |" } else { "| a person decides |" };
        for expected in [code.meaning(), class, &format!("`heliostat provoke {number}`")] {
            assert!(row.contains(expected), "{expected} is missing: {row}");
        }
    }
}

#[test]
fn every_case_and_test_that_the_page_for_clients_names_exists() {
    let (page, tests) = (read("docs/clients.md"), all_tests());
    let mut cases: BTreeSet<String> = heliostat::tools::conform::server::cases().map(|(id, _)| id).collect();
    let mut judge_of_clients = Vec::new();
    sources(&Path::new(env!("CARGO_MANIFEST_DIR")).join("src/tools/conform/client"), &mut judge_of_clients);
    for file in judge_of_clients {
        let source = std::fs::read_to_string(file).unwrap();
        cases.extend(source.split('"').filter(|word| word.starts_with("CLIENT-")).map(str::to_owned));
    }
    let traps = page.split("| Trap |").nth(1).unwrap().split("\n\n").next().unwrap();
    let rows: Vec<&str> = traps.lines().skip(2).collect();
    assert!(rows.len() >= 20, "the traps were found");
    for row in rows {
        let proof = row.trim_end_matches(" |").rsplit(" | ").next().unwrap();
        let named: Vec<&str> = proof.split('`').skip(1).step_by(2).collect();
        assert!(!named.is_empty(), "nothing shows it: {row}");
        for name in named {
            assert!(cases.contains(name) || tests.iter().any(|test| test == name), "there is no {name}: {row}");
        }
    }
}

#[test]
fn the_page_for_clients_shows_rust_that_is_compiled_and_a_server_that_starts() {
    use clap::Parser as _;
    let page = read("docs/clients.md");
    let compiled = [read("examples/hello.rs"), read("src/testkit/mod.rs").replace("//! ", "")];
    let blocks = blocks(&page, "rust");
    assert_eq!(blocks.len(), 2);
    for block in blocks {
        assert!(compiled.iter().any(|source| source.contains(&block)), "not compiled anywhere:\n{block}");
    }
    let ten = read("examples/hello.rs");
    assert_eq!(ten.lines().filter(|line| !line.starts_with("//")).count(), 10);
    let commands = page.lines().filter_map(|line| {
        let line = line.strip_prefix("$ ")?;
        line.strip_prefix("heliostat ").or_else(|| line.strip_prefix("cargo run --release -- "))
    });
    let mut found = 0;
    for command in commands {
        // What stands between single quotes is one word.
        let parts = command.split('\'').enumerate();
        let words = parts.flat_map(|(n, part)| if n % 2 == 1 { vec![part] } else { part.split_whitespace().collect() });
        let words = ["heliostat"].into_iter().chain(words);
        heliostat::cli::Cli::try_parse_from(words).unwrap_or_else(|error| panic!("{command}: {error}"));
        found += 1;
    }
    assert!(found >= 3, "the commands were found");
}

#[test]
fn every_clause_of_the_specifications_is_proved_or_excepted() {
    let (index, tests) = (read("docs/spec.md"), all_tests());
    assert!(tests.len() > 100, "the tests were found");
    let found = index_findings(&index, &tests);
    assert!(found.is_empty(), "\n{}", found.join("\n"));
}

#[test]
fn every_test_that_the_guarantees_name_exists() {
    let (page, tests) = (read("docs/guarantees.md"), all_tests());
    let is_test = |name: &&str| name.contains('_') && name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_');
    // Between backticks: every second part of the page, as long as no code block stands in it.
    let named: BTreeSet<&str> = page.split('`').skip(1).step_by(2).filter(is_test).collect();
    assert!(named.len() > 50, "the names were found");
    let missing: Vec<_> = named.into_iter().filter(|&name| !tests.iter().any(|test| test == name)).collect();
    assert!(missing.is_empty(), "there is no test {missing:?}");
    let promises = page.lines().filter_map(|line| line.strip_prefix("| ")?.strip_suffix(" |")?.split_once(". | "));
    let bare: Vec<_> = promises.filter(|(_, proof)| !proof.starts_with('`')).collect();
    assert!(bare.is_empty(), "a promise without a test: {bare:?}");
}

#[test]
fn every_way_to_lose_a_clause_is_found() {
    let row = |clause: String| format!("| {clause} | a rule | `proof` |");
    let whole: String = checklist()
        .chain(decisions())
        .map(row)
        .chain(["| D2M-4.4 | queues |".to_owned()])
        .fold(String::new(), |index, row| index + &row + "\n");
    let tests = || {
        let carriers = checklist().map(|line| line.to_lowercase().replace(['-', '.'], "_") + "_holds");
        carriers.chain(["proof".to_owned(), "d2m_4_4_holds".to_owned()]).collect::<Vec<String>>()
    };
    assert_eq!(index_findings(&whole, &tests()), [""; 0]);
    let changes: [(&str, &str, &str); 7] = [
        ("| D2M-A3 | a rule | `proof` |\n", "", "D2M-A3 is in the index 0 times"),
        ("D2M-A3 |", "D2M-A4 |", "D2M-A4 is in the index 2 times"),
        ("CSP-13.17 |", "CSP-13.18 |", "CSP-13.18: there is no such clause"),
        ("D2M-A3 | a rule | `proof`", "D2M-A3 | a rule | `prof`", "D2M-A3: there is no test prof"),
        ("D2M-A3 | a rule | `proof`", "D2M-A3 | a rule | proof", "neither a test nor an exception"),
        ("D2M-A3 | a rule | `proof`", "D2M-A3 | a rule | exception: ", "neither a test nor an exception"),
        ("| D2M-4.4 | queues |\n", "", "d2m_4_4_holds carries D2M-4.4"),
    ];
    for (from, to, expected) in changes {
        let found = index_findings(&whole.replacen(from, to, 1), &tests());
        assert!(found.iter().any(|it| it.contains(expected)), "{from:?} to {to:?}: {found:?}");
    }
    let excepted = whole.replacen("D2M-A3 | a rule | `proof`", "D2M-A3 | a rule | exception: it cannot be seen", 1);
    assert_eq!(index_findings(&excepted, &tests()), [""; 0]);
    let fewer: Vec<String> = tests().into_iter().filter(|test| !test.starts_with("csp_13_7_")).collect();
    assert_eq!(index_findings(&whole, &fewer), ["no test carries CSP-13.7 in its name"]);
}

#[test]
fn a_test_is_known_by_its_attribute_and_a_clause_by_its_number() {
    let source = "
        #[cfg(test)] mod tests { fn helper() {}
        #[test] fn one() {} /* #[test] fn no() {} */
        #[tokio::test(start_paused = true)]
        #[ignore] async fn two() { let f = \"#[test] fn no()\"; }
        #[cfg(test)] fn helper_too() {} }
        promised_by_both! { three four }";
    assert_eq!(tests_in(source), ["one", "two", "three", "four"]);
    for (test, expected) in [
        ("d2m_12_7_a_reflect", &["D2M-12.7"][..]),
        ("d2m_a22_the_clock", &["D2M-A22"]),
        ("d2m_5_the_one", &["D2M-5"]),
        ("csp_13_12_idle_timeout_30_is_enforced_29_and_601_end", &["CSP-13.12"]),
        ("csp_13_6_unknown_and_13_7_the_ack", &["CSP-13.6", "CSP-13.7"]),
        ("csp_is_cut_at_its_own_seams", &[]),
        ("a_crash_forgets_nothing", &[]),
    ] {
        assert_eq!(clauses_of(test), expected, "{test}");
    }
}
