//! `heliostat tox` as a person or a script runs it, against a hub on real sockets.

use std::path::Path;
use std::process::Stdio;

use heliostat::chat::toxgroup::serve::thin::{Op, What};
use heliostat::upstream::framer::Framing;
use tokio::io::AsyncWriteExt as _;
use tokio::process::{Child, Command};

use super::common::soon;
use super::common::{Server, Setup};
use super::hub::{ask, encrypted, encrypted_hub, group, hears, hub};

fn tox(args: &[&str], dir: &Path) -> Child {
    Command::new(env!("CARGO_BIN_EXE_heliostat"))
        .arg("tox")
        .args(args)
        .current_dir(dir)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .unwrap()
}

/// What it printed and how it ended, after it was told this and nothing more.
async fn told(mut child: Child, lines: &str) -> (String, bool) {
    child.stdin.take().unwrap().write_all(lines.as_bytes()).await.unwrap();
    let output = soon(child.wait_with_output()).await.unwrap();
    let text = String::from_utf8([output.stdout, output.stderr].concat()).unwrap();
    (text, output.status.success())
}

#[tokio::test]
async fn a_script_makes_a_group_joins_it_by_each_way_and_talks() {
    let (hub, dir) = (hub().await, tempfile::tempdir().unwrap());
    let at = hub.at.thin.to_string();
    let (made, fine) =
        told(tox(&["create", "lobby", "--hub", &at, "--nick", "ann", "--uses", "3"], dir.path()), "").await;
    assert!(fine, "{made}");
    let (id, token) = made.trim().split_once('\n').unwrap();
    let id = id.strip_prefix("group ").unwrap();
    let mut thin = hub.thin("bob").await;
    let entered = ask(&mut thin, Op::Join { group: token.into(), nick: "bob".into() }).await;
    assert!(matches!(entered, What::Entered { .. }), "{entered:?}");
    for way in ["udp", "tcp"] {
        let said = format!("{} by {way}", "long ".repeat(300));
        let child = tox(&["join", token, "--nick", "carol", "--by", way, "--bind", "127.0.0.1:0"], dir.path());
        let (shown, fine) = told(child, &format!("{said}\n/me waves by {way}\n/members\n/kick nobody\n")).await;
        assert!(fine, "{shown}");
        assert!(shown.starts_with("-- in lobby with ") && shown.contains("* carol waves by "), "{shown}");
        assert!(shown.contains("founder)") && shown.contains("!! who is nobody?"), "{shown}");
        hears(&mut thin, &format!("waves by {way}")).await;
    }
    let (refused, fine) = told(tox(&["join", token, "--by", "web"], dir.path()), "").await;
    assert!(!fine && refused.contains("used up"), "{refused}");

    let talk = ["talk", id, "--hub", &at, "--nick", "ann"];
    let (shown, fine) =
        told(tox(&talk, dir.path()), "hello\n/topic tests\n/history\n/nonsense\n/kick bob be nice\n").await;
    assert!(fine, "{shown}");
    assert!(shown.contains("* carol waves by tcp") && shown.contains("!! no such command"), "{shown}");
    hears(&mut thin, "hello").await;
    soon(async { while !matches!(thin.next().await.unwrap(), What::Left { why, .. } if why == "banned") {} }).await;
    let gone = ask(&mut thin, Op::Say { group: id.into(), text: "why?".into(), action: false }).await;
    assert!(matches!(gone, What::Error { .. }), "{gone:?}");
    hub.stop().await;
}

#[tokio::test]
async fn who_is_banned_or_has_no_invitation_is_told_so() {
    let (hub, dir) = (hub().await, tempfile::tempdir().unwrap());
    for (args, why) in [
        (&["join", "toxgroup1:nonsense"][..], "no invitation"),
        (&["talk", "00", "--hub", &hub.at.thin.to_string()], "no such group"),
        (&["create", "x", "--hub", "127.0.0.1:1"], "cannot reach the hub"),
    ] {
        let (shown, fine) = told(tox(args, dir.path()), "").await;
        assert!(!fine && shown.contains(why), "{shown}");
    }
    for classic in [false, true] {
        let mut thin = hub.thin("ann").await;
        let (group, _, token) = group(&mut thin, classic, 1).await;
        let mut child = tox(&["join", &token.text(), "--nick", "mallory", "--by", "web"], dir.path());
        let mut stdin = child.stdin.take().unwrap();
        stdin.write_all(b"rude words\n").await.unwrap();
        let member = hears(&mut thin, "rude words").await.to_string();
        let verdict = heliostat::chat::toxgroup::wire::record::Verdict::Ban;
        let ban = Op::Sanction { group, member, verdict, for_s: None, reason: "rude".into() };
        assert_eq!(ask(&mut thin, ban).await, What::Ok);
        let output = soon(child.wait_with_output()).await.unwrap();
        let shown = String::from_utf8_lossy(&output.stderr);
        assert!(!output.status.success() && shown.contains("banned"), "{shown}");
        drop(stdin);
    }
    hub.stop().await;
}

#[tokio::test]
async fn through_tls_the_same_is_said_by_a_member_and_by_a_thin_user_of_a_mediator() {
    let (hub, ca) = encrypted_hub().await;
    let dir = tempfile::tempdir().unwrap();
    // The mediator's door is encrypted, too, and leads to the hub's thin users.
    let setup = Setup {
        upstream: Some(hub.at.thin),
        framing: Framing::ToxGroup,
        door: encrypted(dir.path()),
        ..Setup::default()
    };
    let server = Server::start(&dir.path().join("store"), setup).await;
    let url = format!("wss://localhost:{}", server.address.port());
    let (ca, data) = (ca.path().to_str().unwrap(), dir.path().to_str().unwrap());
    let through = ["--hub", &url, "--data", data, "--server-group", "c1", "--nick", "ann"];
    let (made, fine) = told(tox(&[&["create", "lobby"][..], &through].concat(), dir.path()), "").await;
    assert!(fine, "{made}");
    let (id, token) = made.trim().split_once('\n').unwrap();
    let id = id.strip_prefix("group ").unwrap();
    let mut thin = hub.thin("bob").await;
    let entered = ask(&mut thin, Op::Join { group: token.into(), nick: "bob".into() }).await;
    assert!(matches!(entered, What::Entered { .. }), "{entered:?}");

    let stranger = tox(&["join", token, "--by", "web", "--nick", "eve"], dir.path());
    let (shown, fine) = told(stranger, "").await;
    assert!(!fine && shown.contains("cannot reach the hub by wss://"), "whoever made that certificate: {shown}");
    let member = tox(&["join", token, "--by", "web", "--nick", "carol", "--data", ca], dir.path());
    let (shown, fine) = told(member, "by wss\n").await;
    assert!(fine && shown.contains("carol: by wss"), "{shown}");
    hears(&mut thin, "by wss").await;
    let talk = tox(&[&["talk", id][..], &through].concat(), dir.path());
    let (shown, fine) = told(talk, "by wss, too\n/history\n").await;
    assert!(fine && shown.contains("carol: by wss"), "{shown}");
    hears(&mut thin, "by wss, too").await;
    server.stop().await;
    hub.stop().await;
}
