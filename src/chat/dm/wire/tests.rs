use serde_json::{Value, json};

use super::*;
use crate::chat::dm::crypto::SecretKey;
use crate::crypto::Secret;

fn read(name: &str, args: &[Value]) -> Result<Request, Code> {
    let mut event = vec![json!(name)];
    event.extend_from_slice(args);
    Request::read(name, &Value::Array(event).to_string())
}

fn point(seed: u8) -> String {
    SecretKey::new(&Secret::new([seed; 32])).public().to_hex()
}

#[test]
fn arguments_come_by_name_in_order_or_not_at_all() {
    let asked = Ok(Request::SendFriendRequest { username: "bob".into() });
    assert_eq!(read("send_friend_request", &[json!({ "username": "bob", "unknown": [1] })]), asked);
    assert_eq!(read("send_friend_request", &[json!("bob"), json!("more")]), asked);
    for nothing in [&[][..], &[json!(null)], &[json!({})]] {
        assert_eq!(read("get_dms", nothing), Ok(Request::GetDms));
        assert_eq!(read("get_dm", nothing), Err(Code::BadRequest));
    }
    assert_eq!(read("get_nothing", &[]), Err(Code::UnknownEvent));
    assert_eq!(read("unblock_user", &[json!("bob")]), read("unblock", &[json!("bob")]));
}

#[test]
fn numbers_are_whole_however_they_are_written() {
    for seven in [json!(7), json!(7.0), json!("7")] {
        assert_eq!(read("get_dm", &[json!({ "id": seven })]), Ok(Request::GetDm { id: 7 }));
    }
    assert_eq!(Request::read("get_dm", r#"["get_dm",{"id":70e-1}]"#), Ok(Request::GetDm { id: 7 }));
    for bad in [json!(7.5), json!("+7"), json!("7.0"), json!(""), json!(true), json!([7]), json!(1e300)] {
        assert_eq!(read("get_dm", &[json!({ "id": bad })]), Err(Code::BadRequest), "{bad}");
    }
}

#[test]
fn hex_is_digits_and_nothing_else() {
    let message = |message: &str| {
        let sent = json!({ "id": 1, "message": message, "signature": "00".repeat(64), "schedule": 0, "delete": 0 });
        read("send_message", &[sent]).map(|request| match request {
            Request::SendMessage { message, .. } => message,
            other => panic!("{other:?}"),
        })
    };
    assert_eq!(message("aB09"), Ok(vec![0xab, 9]));
    for bad in ["", "a", "a b", "zz", "0x00"] {
        assert_eq!(message(bad), Err(Code::Malformed), "{bad}");
    }
    assert!(message(&"00".repeat(MESSAGE_MAX)).is_ok());
    assert_eq!(message(&"00".repeat(MESSAGE_MAX + 1)), Err(Code::TooLarge));
    let short = json!({ "id": 1, "message": "00", "signature": "00".repeat(63) });
    assert_eq!(read("send_message", &[short]), Err(Code::Malformed));
}

#[test]
fn delays_are_not_negative_and_end() {
    let send = |key: &str, delay: i64| {
        let mut sent = json!({ "id": 1, "message": "00", "signature": "00".repeat(64) });
        sent[key] = json!(delay);
        read("send_message", &[sent]).map(drop)
    };
    for key in ["schedule", "delete"] {
        assert_eq!((send(key, 0), send(key, DELAY_MAX_S)), (Ok(()), Ok(())));
        assert_eq!((send(key, -1), send(key, DELAY_MAX_S + 1)), (Err(Code::BadRequest), Err(Code::BadRequest)));
    }
}

#[test]
fn a_group_has_a_tree_of_its_size_and_nobody_twice() {
    let create = |names: &[&str], messages: usize, keys: usize| {
        let invitation = json!({ "ek": point(1), "spk": point(2), "setup_sig": null });
        let args = json!({
            "usernames": names, "messages": vec![invitation; messages], "key_tree": vec![point(3); keys],
        });
        read("create_dm", &[args]).map(drop)
    };
    assert_eq!(create(&["bob"], 1, 2), Ok(()));
    assert_eq!(create(&["bob", "carol"], 2, 6), Ok(()));
    assert_eq!(create(&["bob", "carol", "dave"], 3, 6), Ok(()));
    for (names, messages, keys) in [(&[][..], 0, 0), (&["bob"], 0, 2), (&["bob"], 1, 3), (&["bob", "bob"], 2, 6)] {
        assert_eq!(create(names, messages, keys), Err(Code::BadRequest), "{names:?} {messages} {keys}");
    }
    let many: Vec<_> = (0..128).map(|n| format!("user{n}")).collect();
    let many: Vec<_> = many.iter().map(String::as_str).collect();
    assert_eq!(create(&many[..127], 127, 254), Ok(()));
    assert_eq!(create(&many, 128, 510), Err(Code::TooMany));
}

#[test]
fn keys_are_points_one_may_compute_with() {
    let vectors: Value = serde_json::from_str(include_str!("../../../../tests/vectors/dm.json")).unwrap();
    let bad = vectors["bad_points"].as_object().unwrap();
    assert!(bad.len() >= 7);
    for key in bad.values() {
        let key = key.as_str().unwrap();
        let set = read("set_user", &[json!({ "spk": key, "sig": "00".repeat(64) })]);
        assert_eq!(set, Err(Code::Malformed), "{key}");
    }
    let set = |spk: Value, sig: Value| read("set_user", &[json!({ "spk": spk, "sig": sig })]).map(drop);
    assert_eq!(set(json!(point(1)), json!("00".repeat(64))), Ok(()));
    assert_eq!(set(json!(null), json!(null)), Ok(()));
    assert_eq!(set(json!(point(1)), json!(null)), Err(Code::BadRequest));
}

#[test]
fn a_profile_has_its_lengths_in_scalars() {
    let set = |key: &str, len: usize| read("set_user", &[json!({ key: "é".repeat(len) })]).map(drop);
    for (key, max) in
        [("biography", BIOGRAPHY_MAX), ("profile_picture", PROFILE_PICTURE_MAX), ("own_storage", OWN_STORAGE_MAX)]
    {
        assert_eq!((set(key, max), set(key, max + 1)), (Ok(()), Err(Code::TooLarge)), "{key}");
    }
    assert_eq!(read("set_user", &[json!({ "biography": "a\0b" })]), Err(Code::BadRequest));
    assert_eq!(read("set_user", &[json!({ "status": "asleep" })]), Err(Code::BadRequest));
    let renamed = |name: Value| read("set_dm", &[json!({ "id": 1, "name": name })]);
    assert_eq!(renamed(json!("")), renamed(json!(null)));
    assert_eq!(renamed(json!("é".repeat(101))), Err(Code::TooLarge));
    assert_eq!(read("set_dm", &[json!({ "id": 1 })]), Ok(Request::SetDm { id: 1, name: None }));
}

#[test]
fn hostile_text_is_refused_in_bounded_time() {
    let deep = format!("[\"get_dm\",{}{}]", "[".repeat(10_000), "]".repeat(10_000));
    assert_eq!(Request::read("get_dm", &deep), Err(Code::BadRequest));
    let hidden = format!("[\"get_dms\",{{\"x\":{}{}}}]", "[".repeat(10_000), "]".repeat(10_000));
    assert_eq!(Request::read("get_dms", &hidden), Ok(Request::GetDms), "nobody looks there");
    for bad in ["", "[", "[]", "{}", "7", r#"["login",{"username":"\ud800"}]"#, "[\"login\",{\"username\":1}]"] {
        assert_eq!(Request::read("login", bad), Err(Code::BadRequest), "{bad}");
    }
}

#[test]
fn every_name_is_read_and_every_code_has_its_word() {
    for name in Request::NAMES {
        assert_ne!(read(name, &[]), Err(Code::UnknownEvent), "{name}");
    }
    let words: std::collections::HashSet<_> = Code::ALL.iter().map(|code| code.word()).collect();
    assert_eq!(words.len(), Code::ALL.len());
    assert!(Code::ALL.into_iter().all(|code| Code::of(code.word()) == Some(code)));
    let names: std::collections::HashSet<_> = Notice::ALL.iter().map(|notice| notice.name()).collect();
    assert_eq!(names.len(), 14);
}

#[test]
fn an_envelope_of_success_has_two_keys() {
    let said = |answer| serde_json::to_value(Envelope::from(answer)).unwrap();
    assert_eq!(said(Ok(raw(&true))), json!({ "success": true, "result": true }));
    let refused = Refusal { code: Code::WrongResponse, tries_left: Some(9) };
    let text = "The answer is wrong. 9 tries left.";
    assert_eq!(said(Err(refused)), json!({ "success": false, "result": text, "code": "wrong_response" }));
}

#[test]
fn times_have_26_characters_and_are_read_in_every_zone() {
    assert_eq!(stamp::write(0), "1970-01-01T00:00:00.000000");
    let us = 1_795_276_800_000_001;
    assert_eq!(stamp::write(us).len(), 26);
    assert_eq!(stamp::read(&stamp::write(us)), Some(us));
    let noon = stamp::read("2026-11-21T12:00:00Z");
    for same in ["2026-11-21T12:00:00", "2026-11-21T14:30:00+02:30", "2026-11-21T07:00:00.000-05:00"] {
        assert_eq!(stamp::read(same), noon, "{same}");
    }
    assert_eq!(stamp::read("2026-11-21T12:00:00.000000001"), noon.map(|it| it + 1), "what is older is older");
    for bad in [
        "",
        "yesterday",
        "2026-11-21",
        "2026-11-21T12:00:00.",
        "2026-11-21T12:00:00.1234567890",
        "2026-11-21T12:00:00+2",
    ] {
        assert_eq!(stamp::read(bad), None, "{bad}");
    }
}
