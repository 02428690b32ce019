//! What happens to users, told on both databases.

use std::time::Duration;

use heliostat::chat::dm::crypto::{PublicKey, Setup, setup_message};
use heliostat::chat::dm::wire::stamp;
use serde_json::{Value, json};

use crate::world::{Account, Ground, befriend, group, invitation, pair, point, soon};

fn named(name: &str) -> Value {
    json!({ "username": name })
}

pub async fn registering_and_logging_in_both_ways(ground: Ground) {
    let world = ground.open().await;
    let mut client = world.stranger().await;
    let account = Account::of("Ann Lee");
    assert_eq!(client.does("username_exists", named("Ann Lee")).await, false);
    assert_eq!(client.cannot("get_dms", json!({})).await, "not_logged_in");
    assert_eq!(client.cannot("send_message", json!({})).await, "not_logged_in", "before anything is looked at");
    for (key, value, code) in [
        ("username", json!("ab"), "username_invalid"),
        ("username", json!(" bob"), "username_invalid"),
        ("username", json!(5), "bad_request"),
        ("sig", json!(account.signed(b"something else")), "bad_signature"),
        ("public_key", json!("00".repeat(32)), "malformed"),
        ("own_storage", json!("x".repeat(524_289)), "too_large"),
    ] {
        let mut wrong = account.registration();
        wrong[key] = value;
        assert_eq!(client.cannot("register", wrong).await, code, "{key}");
    }
    assert_eq!(client.does("register", account.registration()).await, true);
    assert_eq!(client.cannot("register", account.registration()).await, "username_taken");
    assert_eq!(client.does("username_exists", named("ann lee")).await, true, "as good as taken");
    assert_eq!(client.cannot("get_full_user", json!({})).await, "not_logged_in", "registering is not logging in");

    // As the first client of this protocol does it: by a product.
    let challenge = client.does("login", named("Ann Lee")).await;
    let challenge = PublicKey::from_hex(challenge.as_str().unwrap()).unwrap();
    let product = hex::encode(account.identity.answer_by_product(&challenge).expose());
    assert_eq!(client.does("login_challenge_response", json!({ "response": product })).await, true);
    assert_eq!(client.cannot("login", named("Ann Lee")).await, "already_logged_in");
    assert_eq!(client.cannot("register", Account::of("other").registration()).await, "already_logged_in");
    // By a signature, as every other client here.
    let mut other = world.again("Ann Lee").await;
    let own = other.does("get_full_user", json!({})).await;
    assert_eq!(
        (&own["username"], &own["own_storage"], &own["status"]),
        (&json!("Ann Lee"), &json!(""), &json!("online"))
    );
    let seen = other.does("get_user", named("Ann Lee")).await;
    let list = other.does("get_user_list", json!({})).await;
    assert_eq!((seen.get("own_storage"), &list), (None, &json!([seen])));
    assert_eq!(seen.as_object().unwrap().len(), 7, "{seen}");
    assert_eq!(other.cannot("get_user", named("ann lee")).await, "no_such_user");

    // Of two things that are wrong, the first is told.
    let mut wrong = account.registration();
    wrong["sig"] = json!("no");
    assert_eq!(other.cannot("register", wrong.clone()).await, "already_logged_in");
    let mut client = world.stranger().await;
    assert_eq!(client.cannot("register", wrong.clone()).await, "username_taken");
    wrong["username"] = json!("ab");
    assert_eq!(client.cannot("register", wrong).await, "username_invalid");
    for event in ["send_message", "get_message_history", "join_call"] {
        let args = json!({ "id": 7, "message": "no", "count": 0, "uuid": "" });
        assert_eq!(other.cannot(event, args).await, "no_dm_access", "{event}");
    }
    assert_eq!(other.cannot("set_message", json!({ "id": 7, "message": "no" })).await, "no_message_access");
    assert_eq!(other.cannot("send_message", json!({ "message": "no" })).await, "bad_request");
    world.close().await;
}

pub async fn a_wrong_answer_uses_the_challenge_up_and_ten_lock_the_connection(mut ground: Ground) {
    ground.settings.lockout.locks_for = Duration::from_secs(2);
    let world = ground.open().await;
    world.somebody("alice").await.leaves().await;
    let mut client = world.stranger().await;
    assert_eq!(client.cannot("login_challenge_response", json!({ "response": "00".repeat(32) })).await, "no_challenge");
    let challenge = client.does("login", named("alice")).await;
    let wrong = json!({ "response": "00".repeat(32) });
    let refused = client.call("login_challenge_response", wrong.clone()).await;
    assert_eq!(
        (&refused["code"], &refused["result"]),
        (&json!("wrong_response"), &json!("The answer is wrong. 8 tries left."))
    );
    let mut point = [0; 32];
    hex::decode_to_slice(challenge.as_str().unwrap(), &mut point).unwrap();
    let right = json!({ "response": hex::encode(Account::of("alice").identity.answer("alice", &point)) });
    assert_eq!(client.cannot("login_challenge_response", right).await, "no_challenge", "it has had its answer");
    // So has one that is answered with something that no answer can be.
    let challenge = client.does("login", named("alice")).await;
    hex::decode_to_slice(challenge.as_str().unwrap(), &mut point).unwrap();
    let right = json!({ "response": hex::encode(Account::of("alice").identity.answer("alice", &point)) });
    assert_eq!(client.cannot("login_challenge_response", json!({ "response": "00" })).await, "malformed");
    assert_eq!(client.cannot("login_challenge_response", right).await, "no_challenge");
    assert_eq!(client.cannot("login", named("nobody")).await, "no_such_user");
    for _ in 0..4 {
        assert_eq!(client.cannot("login", json!({})).await, "bad_request");
    }
    assert_eq!(client.cannot("login", named("alice")).await, "locked_out");
    assert_eq!(client.does("username_exists", named("alice")).await, true, "everything else is heard");
    while client.call("login", named("alice")).await["code"] == "locked_out" {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    client.log_in(&Account::of("alice")).await;
    world.close().await;
}

pub async fn profiles_are_seen_by_those_who_are_logged_in(ground: Ground) {
    let world = ground.open().await;
    let mut stranger = world.stranger().await;
    let mut alice = world.somebody("alice").await;
    let mut bob = world.somebody("bob").await;
    let came = alice.hears("profile_notification").await;
    assert_eq!((&came["username"], &came["status"]), (&json!("bob"), &json!("online")));
    assert_eq!(came.as_object().unwrap().len(), 7, "no own storage: {came}");

    let change = json!({ "biography": "é".repeat(500), "status": "away", "profile_picture": "#aabbcc" });
    assert_eq!(alice.does("set_user", change).await, true);
    let changed = bob.hears("profile_notification").await;
    assert_eq!((&changed["status"], &changed["biography"]), (&json!("away"), &json!("é".repeat(500))));
    assert_eq!(alice.heard().await, [], "who changed it knows");
    assert_eq!(alice.cannot("set_user", json!({ "biography": "é".repeat(501), "status": "dnd" })).await, "too_large");
    assert_eq!(alice.does("get_full_user", json!({})).await["status"], "away", "all or nothing");
    let (key, foreign) = (point(9), Account::of("bob"));
    let set = |sig: String| json!({ "spk": key.to_hex(), "sig": sig });
    assert_eq!(alice.cannot("set_user", set(foreign.signed(key.as_bytes()))).await, "bad_signature");
    assert_eq!(alice.cannot("set_user", json!({ "spk": key.to_hex() })).await, "bad_request");
    assert_eq!(alice.does("set_user", set(alice.me().signed(key.as_bytes()))).await, true);
    assert_eq!(bob.hears("profile_notification").await["spk"], key.to_hex());
    assert_eq!(alice.does("set_user", json!({ "spk": null, "sig": null })).await, true);
    assert_eq!(bob.hears("profile_notification").await["spk"], json!(null));
    assert_eq!(alice.does("set_user", json!({ "unknown": 1 })).await, true);

    // Who asks for everybody hears what is so now, however often.
    let everybody = async |client: &mut crate::world::Client| client.does("get_user_list", json!({})).await;
    let list = everybody(&mut bob).await;
    assert_eq!((list.as_array().unwrap().len(), &list[0]["biography"]), (2, &json!("é".repeat(500))));
    alice.does("set_user", json!({ "biography": "x" })).await;
    assert_eq!((bob.hears("profile_notification").await, everybody(&mut bob).await[0]["biography"].clone()).1, "x");
    assert_eq!(stranger.does("register", Account::of("carol").registration()).await, true);
    assert_eq!(everybody(&mut bob).await[2]["status"], "offline");

    // Own storage is a hint to one's own devices.
    let mut tablet = world.again("alice").await;
    assert_eq!(bob.heard().await, [], "she was here already");
    assert_eq!(alice.does("set_user", json!({ "own_storage": "sealed" })).await, true);
    assert_eq!(tablet.hears("profile_notification").await["username"], "alice");
    assert_eq!(
        (tablet.does("get_full_user", json!({})).await["own_storage"].clone(), bob.heard().await),
        (json!("sealed"), vec![])
    );
    alice.leaves().await;
    assert_eq!(bob.does("get_user", named("alice")).await["status"], "away");
    assert_eq!(everybody(&mut bob).await[0]["status"], "away");
    tablet.leaves().await;
    assert_eq!(bob.hears("profile_notification").await["status"], "offline");
    assert_eq!(everybody(&mut bob).await[0]["status"], "offline");
    assert_eq!(bob.does("get_user", named("alice")).await["status"], "offline");

    // Who is invisible comes and goes unseen.
    let mut alice = world.again("alice").await;
    bob.hears("profile_notification").await;
    alice.does("set_user", json!({ "status": "offline" })).await;
    assert_eq!(bob.hears("profile_notification").await["status"], "offline");
    alice.leaves().await;
    let mut alice = world.again("alice").await;
    assert_eq!(alice.does("get_full_user", json!({})).await["status"], "offline");
    assert_eq!((bob.heard().await, stranger.heard().await), (vec![], vec![]), "strangers hear nothing");
    world.close().await;
}

pub async fn friends_are_made_refused_blocked_and_lost(ground: Ground) {
    let world = ground.open().await;
    let (mut alice, mut bob) = (world.somebody("alice").await, world.somebody("bob").await);
    for (name, code) in [("alice", "cannot_friend_self"), ("nobody", "cannot_friend")] {
        assert_eq!(alice.cannot("send_friend_request", named(name)).await, code);
    }
    assert_eq!(alice.does("send_friend_request", json!("bob")).await, true, "in order works, too");
    assert_eq!(bob.hears("friend_request_notification").await, named("alice"));
    assert_eq!(alice.cannot("send_friend_request", named("bob")).await, "already_requested");
    assert_eq!(bob.cannot("send_friend_request", named("alice")).await, "request_waiting");
    assert_eq!(alice.does("get_outgoing_requests", json!({})).await, json!(["bob"]));
    assert_eq!(bob.does("get_friend_requests", json!({})).await, json!(["alice"]));
    assert_eq!(bob.does("ack_friend_request", json!({ "username": "alice", "accept": false })).await, true);
    assert_eq!(alice.hears("friend_request_accept_notification").await, json!({ "username": "bob", "accept": false }));
    assert_eq!(bob.cannot("ack_friend_request", json!({ "username": "alice", "accept": true })).await, "no_request");
    befriend(&mut alice, &mut bob).await;
    assert_eq!(alice.cannot("send_friend_request", named("bob")).await, "already_friends");
    assert_eq!(
        (alice.does("get_friends", json!({})).await, bob.does("get_friends", json!({})).await),
        (json!(["bob"]), json!(["alice"]))
    );

    // A block is silent, and does not show in what others are refused.
    alice.heard().await;
    assert_eq!(alice.does("block_user", named("bob")).await, true);
    assert_eq!((bob.names_heard().await, bob.does("get_friends", json!({})).await), (vec![], json!([])));
    for name in ["bob", "alice", "nobody"] {
        assert_eq!(alice.cannot("block_user", named(name)).await, "cannot_block");
    }
    assert_eq!(
        bob.cannot("send_friend_request", named("alice")).await,
        bob.cannot("send_friend_request", named("nobody")).await
    );
    assert_eq!(alice.does("get_blocked", json!({})).await, json!(["bob"]));
    assert_eq!(alice.does("unblock_user", named("bob")).await, true, "the other name of unblock");
    assert_eq!(alice.cannot("unblock", named("bob")).await, "not_blocked");

    // Who asks lifts the own block; who was asked and blocks can still accept.
    alice.does("block_user", named("bob")).await;
    alice.does("send_friend_request", named("bob")).await;
    assert_eq!(alice.does("get_blocked", json!({})).await, json!([]));
    bob.does("block_user", named("alice")).await;
    assert_eq!(bob.does("get_friend_requests", json!({})).await, json!(["alice"]));
    bob.does("ack_friend_request", json!({ "username": "alice", "accept": true })).await;
    assert_eq!(
        (bob.does("get_blocked", json!({})).await, bob.does("get_friends", json!({})).await),
        (json!([]), json!(["alice"]))
    );
    assert_eq!(bob.does("unfriend", named("alice")).await, true);
    assert_eq!(
        (alice.hears("unfriend_notification").await, bob.hears("unfriend_notification").await),
        (named("bob"), named("alice"))
    );
    assert_eq!(bob.cannot("unfriend", named("alice")).await, "not_friends");
    world.close().await;
}

pub async fn a_dm_of_two_needs_friendship_and_is_made_once(ground: Ground) {
    let world = ground.open().await;
    let (mut alice, mut bob) = (world.somebody("alice").await, world.somebody("bob").await);
    assert_eq!(alice.cannot("create_dm", invitation(&["bob"])).await, "not_friends");
    befriend(&mut alice, &mut bob).await;
    for (names, code) in
        [(&["alice"][..], "bad_request"), (&["nobody"], "no_such_user"), (&["bob", "bob"], "bad_request")]
    {
        assert_eq!(alice.cannot("create_dm", invitation(names)).await, code, "{names:?}");
    }
    let mut other_prekey = invitation(&["bob"]);
    other_prekey["messages"][0]["spk"] = json!(point(1).to_hex());
    assert_eq!(alice.cannot("create_dm", other_prekey).await, "spk_mismatch");
    let mut forged = invitation(&["bob"]);
    forged["messages"][0]["setup_sig"] = json!(alice.me().signed(b"something else"));
    assert_eq!(alice.cannot("create_dm", forged).await, "bad_signature");

    // What the creator signs arrives as it was signed.
    let mut signed = invitation(&["bob"]);
    let keys: Vec<_> = [0, 1].map(point).to_vec();
    let (creator, invitee) = (alice.me().identity.public(), bob.me().identity.public());
    let (spk, ek) = (bob.me().prekey.public(), point(101));
    let setup =
        Setup { creator: &creator, invitee: &invitee, spk: &spk, ek: &ek, position: 1, members: 2, tree: &keys };
    signed["messages"][0]["setup_sig"] = json!(alice.me().signed(&setup_message(&setup)));
    let mut tablet = world.again("alice").await;
    alice.heard().await;
    let dm = alice.does("create_dm", signed.clone()).await;
    let delivered = bob.hears("x3dh_notification").await;
    let expected = json!({
        "sender": "alice", "ik": creator.to_hex(), "spk": spk.to_hex(), "ek": ek.to_hex(), "key_tree": signed["key_tree"],
        "position": 1, "id": dm, "setup_sig": signed["messages"][0]["setup_sig"],
    });
    assert_eq!(delivered, expected);
    let told = tablet.hears("dm_notification").await;
    assert_eq!((&told["id"], &told["users"], &told["users_in_call"]), (&dm, &json!(["alice", "bob"]), &json!([])));
    assert_eq!(alice.names_heard().await, [""; 0], "the creator has the key");
    for client in [&mut alice, &mut bob] {
        assert_eq!(client.does("get_dms", json!({})).await, json!([dm]));
        let name = if client.me().name == "bob" { "alice" } else { "bob" };
        assert_eq!(client.cannot("create_dm", invitation(&[name])).await, "dm_exists");
    }
    bob.does("set_user", json!({ "spk": null, "sig": null })).await;
    bob.does("leave_dm", json!({ "id": dm })).await;
    assert_eq!(alice.cannot("create_dm", invitation(&["bob"])).await, "spk_missing");
    let again = json!({ "spk": spk.to_hex(), "sig": bob.me().signed(spk.as_bytes()) });
    bob.does("set_user", again).await;
    assert!(alice.does("create_dm", invitation(&["bob"])).await.as_i64() > dm.as_i64(), "one has left the other one");
    world.close().await;
}

pub async fn whom_a_group_is_for_and_who_sees_it(ground: Ground) {
    let world = ground.open().await;
    let (mut alice, mut bob, mut carol, dm) = group(&world).await;
    let mut dave = world.somebody("dave").await;
    let full = bob.does("get_dm", json!({ "id": dm })).await;
    assert_eq!(full["users"], json!(["alice", "bob", "carol"]));
    assert_eq!(
        (&full["name"], &full["latest_message"], &full["scheduled_messages"]),
        (&json!(null), &json!(null), &json!({}))
    );
    assert_eq!(full["created_at"].as_str().unwrap().len(), 26);

    assert_eq!(bob.does("set_dm", json!({ "id": dm, "name": "The three" })).await, true);
    for client in [&mut alice, &mut bob, &mut carol] {
        assert_eq!(client.hears("dm_notification").await["name"], "The three");
    }
    assert_eq!(carol.does("set_dm", json!({ "id": dm, "name": null })).await, true);
    assert_eq!(alice.hears("dm_notification").await["name"], json!(null));
    assert_eq!(carol.does("set_dm", json!({ "id": dm })).await, true, "nothing");
    assert_eq!(alice.names_heard().await, [""; 0]);

    // In a group friendship is not asked for, but a block is in the way of making one.
    let (message, foreign) = (alice.me().message(dm, "hi"), dave.me().message(dm, "hi"));
    alice.does("send_message", message).await;
    let id = bob.hears("message_notification").await["id"].clone();
    bob.does("block_user", named("alice")).await;
    alice.says(dm, "still heard").await;
    assert_eq!(alice.cannot("create_dm", invitation(&["bob", "carol"])).await, "cannot_invite");
    assert_eq!(bob.cannot("create_dm", invitation(&["carol", "alice"])).await, "cannot_invite");

    // Who is not in it cannot tell it from one that is not there.
    let reaction = json!({ "id": id, "reaction": "00", "signature": dave.me().signed(b"\0") });
    for (event, args, code) in [
        ("get_dm", json!({ "id": dm }), "no_dm_access"),
        ("get_dm", json!({ "id": 999_999 }), "no_dm_access"),
        ("set_dm", json!({ "id": dm, "name": "mine" }), "no_dm_access"),
        ("leave_dm", json!({ "id": dm }), "no_dm_access"),
        ("send_message", foreign, "no_dm_access"),
        ("get_message_history", json!({ "id": dm }), "no_dm_access"),
        ("get_pinned", json!({ "id": dm }), "no_dm_access"),
        ("get_message", json!({ "id": id }), "no_message_access"),
        ("get_message", json!({ "id": 999_999 }), "no_message_access"),
        ("set_message", json!({ "id": id, "pinned": true }), "no_message_access"),
        ("add_reaction", reaction, "no_message_access"),
        ("ping_typing", json!({ "id": dm }), "no_dm_access"),
        ("join_call", json!({ "id": dm, "uuid": "u" }), "no_dm_access"),
        ("leave_call", json!({ "id": dm }), "no_dm_access"),
        ("cancel_scheduled_message", json!({ "dm_id": dm, "schedule_id": 1 }), "no_schedule"),
    ] {
        assert_eq!(dave.cannot(event, args).await, code, "{event}");
    }
    assert_eq!(dave.names_heard().await, [""; 0]);
    world.close().await;
}

pub async fn a_key_is_delivered_until_somebody_stayed_who_had_it(mut ground: Ground) {
    ground.settings.x3dh_kept = Duration::from_secs(3600);
    // At once: what waits is said before the first thing that is asked for is answered.
    ground.settings.x3dh_after = Duration::ZERO;
    let world = ground.open().await;
    let mut alice = world.somebody("alice").await;
    for name in ["bob", "carol"] {
        world.somebody(name).await.leaves().await;
    }
    let dm = alice.does("create_dm", invitation(&["bob", "carol"])).await;
    for _ in 0..2 {
        let mut bob = world.again("bob").await;
        let delivered = bob.hears("x3dh_notification").await;
        assert_eq!((&delivered["id"], &delivered["position"]), (&dm, &json!(1)));
        assert_eq!(bob.names_heard().await, [""; 0], "once for each login");
        bob.leaves().await;
    }
    alice.leaves().await;
    world.close().await;

    // Also after a restart. Whoever stayed and was silent may have been dead all the time.
    ground.settings.x3dh_kept = Duration::from_millis(50);
    let world = ground.open().await;
    for _ in 0..2 {
        let mut bob = world.again("bob").await;
        assert_eq!(bob.hears("x3dh_notification").await["id"], dm);
        tokio::time::sleep(Duration::from_millis(200)).await;
        bob.leaves().await;
    }
    // Whoever stayed and says something has it, and it is never sent again.
    let mut bob = world.again("bob").await;
    assert_eq!(bob.hears("x3dh_notification").await["id"], dm);
    let delivered = async {
        loop {
            bob.does("get_dms", json!({})).await;
            let mut again = world.again("bob").await;
            if again.names_heard().await.is_empty() {
                break;
            }
            again.leaves().await;
        }
    };
    soon(delivered).await;
    let mut carol = world.again("carol").await;
    assert_eq!(carol.hears("x3dh_notification").await["position"], 2, "each has an own one");
    world.close().await;
}

pub async fn messages_are_seen_changed_pinned_and_reacted_to_by_members_alone(ground: Ground) {
    let world = ground.open().await;
    let (mut alice, mut bob, dm) = pair(&world).await;
    alice.says(dm, "hello").await;
    let mine = alice.hears("message_notification").await;
    let theirs = bob.hears("message_notification").await;
    assert_eq!((&mine, mine.as_object().unwrap().len()), (&theirs, 9));
    assert_eq!(
        (&mine["sender"], &mine["message"], &mine["pinned"]),
        (&json!("alice"), &json!(hex::encode("hello")), &json!(false))
    );
    assert_eq!((&mine["delete_timestamp"], &mine["reactions"], &mine["dm_id"]), (&json!(null), &json!([]), &json!(dm)));
    let id = mine["id"].clone();

    let mut forged = alice.me().message(dm, "hello");
    forged["signature"] = json!(bob.me().signed(b"hello"));
    assert_eq!(alice.cannot("send_message", forged).await, "bad_signature");
    assert_eq!(alice.cannot("send_message", alice.me().later(dm, "x", -1, 0)).await, "bad_request");

    let edit = json!({ "id": id, "message": hex::encode("hallo"), "signature": alice.me().signed(b"hallo") });
    let foreign = json!({ "id": id, "message": hex::encode("hallo"), "signature": bob.me().signed(b"hallo") });
    assert_eq!(bob.cannot("set_message", foreign.clone()).await, "not_sender");
    assert_eq!(alice.cannot("set_message", foreign).await, "bad_signature");
    assert_eq!(alice.cannot("set_message", json!({ "id": id, "signature": "00".repeat(64) })).await, "bad_request");
    assert_eq!(alice.does("set_message", edit).await, true);
    let changed = bob.hears("message_change_notification").await;
    assert_eq!((&changed["message"], &changed["timestamp"]), (&json!(hex::encode("hallo")), &mine["timestamp"]));
    assert_eq!(bob.does("set_message", json!({ "id": id, "pinned": true })).await, true, "any member may");
    alice.hears("message_change_notification").await;
    assert_eq!(alice.hears("message_change_notification").await["pinned"], true);
    assert_eq!(alice.does("get_pinned", json!({ "id": dm })).await[0]["id"], id);
    assert_eq!(bob.cannot("set_message", json!({ "id": id, "pinned": 1 })).await, "bad_request");
    alice.does("set_message", json!({ "id": id, "pinned": false })).await;
    assert_eq!(alice.does("get_pinned", json!({ "id": dm })).await, json!([]));
    assert_eq!(alice.does("set_message", json!({ "id": id })).await, true);
    bob.heard().await;

    let react = |account: &Account| json!({ "id": id, "reaction": "aabb", "signature": account.signed(&[0xaa, 0xbb]) });
    let reaction = bob.does("add_reaction", react(&bob.me())).await;
    let reacted = alice.does("get_message", json!({ "id": id })).await;
    assert_eq!(reacted["reactions"][0]["id"], reaction);
    assert_eq!(
        (&reacted["reactions"][0]["sender"], &reacted["reactions"][0]["reaction"]),
        (&json!("bob"), &json!("aabb"))
    );
    assert_eq!(bob.hears("message_change_notification").await, reacted);
    assert_eq!(alice.cannot("add_reaction", react(&bob.me())).await, "bad_signature");
    assert_eq!(alice.cannot("remove_reaction", json!({ "id": reaction })).await, "no_reaction_access");
    for _ in 0..20 {
        alice.does("add_reaction", react(&alice.me())).await;
    }
    assert_eq!(alice.cannot("add_reaction", react(&alice.me())).await, "too_many");
    assert_eq!(bob.does("remove_reaction", json!({ "id": reaction })).await, true);
    assert_eq!(bob.cannot("remove_reaction", json!({ "id": reaction })).await, "no_reaction_access");

    alice.heard().await;
    bob.heard().await;
    assert_eq!(alice.does("ping_typing", json!({ "id": dm })).await, true);
    assert_eq!(bob.hears("typing_notification").await, json!({ "id": dm, "username": "alice" }));
    assert_eq!(alice.heard().await, []);
    assert_eq!(bob.does("get_dm", json!({ "id": dm })).await["latest_message"]["id"], id);

    // Without friendship nobody speaks, but what was said stays, and pins do.
    alice.does("unfriend", named("bob")).await;
    assert_eq!(alice.cannot("send_message", alice.me().message(dm, "x")).await, "not_friends");
    assert_eq!(alice.cannot("send_message", json!({ "id": dm })).await, "not_friends", "whatever else is wrong");
    assert_eq!(bob.cannot("add_reaction", react(&bob.me())).await, "not_friends");
    assert_eq!(bob.cannot("ping_typing", json!({ "id": dm })).await, "not_friends");
    assert_eq!(bob.cannot("join_call", json!({ "id": dm, "uuid": "u" })).await, "not_friends");
    assert_eq!(bob.does("set_message", json!({ "id": id, "pinned": true })).await, true);
    assert_eq!(bob.does("get_message_history", json!({ "id": dm })).await.as_array().unwrap().len(), 1);
    world.close().await;
}

pub async fn a_history_has_no_gap_and_nothing_twice(ground: Ground) {
    let world = ground.open().await;
    let (mut alice, mut bob, dm) = pair(&world).await;
    for n in 0..120 {
        let message = alice.me().message(dm, &n.to_string());
        alice.ask("send_message", message).await;
    }
    alice.heard().await;
    let mut texts = Vec::new();
    let mut pages = Vec::new();
    let mut cursor = json!(null);
    loop {
        let page = bob.does("get_message_history", json!({ "id": dm, "cursor": cursor })).await;
        let page = page.as_array().unwrap().clone();
        let Some(last) = page.last() else { break };
        // A message's own time is a place in the history, with a zone and without.
        cursor = match pages.len() % 2 {
            0 => last["timestamp"].clone(),
            _ => json!(format!("{}Z", last["timestamp"].as_str().unwrap())),
        };
        pages.push(page.len());
        texts.extend(page.into_iter().map(|message| message["message"].as_str().unwrap().to_owned()));
    }
    let expected: Vec<_> = (0..120).rev().map(|n: i32| hex::encode(n.to_string())).collect();
    assert_eq!((pages, texts), (vec![50, 50, 20], expected));
    let count = async |client: &mut crate::world::Client, args: Value| {
        client.does("get_message_history", args).await.as_array().unwrap().len()
    };
    assert_eq!(count(&mut bob, json!({ "id": dm, "count": 100 })).await, 100);
    assert_eq!(count(&mut bob, json!({ "id": dm, "limit": 7 })).await, 7, "the other name of it");
    assert_eq!(count(&mut bob, json!({ "id": dm, "cursor": "2000-01-01T00:00:00Z" })).await, 0);
    for bad in
        [json!({ "id": dm, "count": 101 }), json!({ "id": dm, "count": 0 }), json!({ "id": dm, "cursor": "soon" })]
    {
        assert_eq!(bob.cannot("get_message_history", bad).await, "bad_request");
    }
    world.close().await;
}

pub async fn scheduled_messages_are_sent_and_deleted_in_their_time(ground: Ground) {
    let world = ground.open().await;
    let (mut alice, mut bob, dm) = pair(&world).await;
    assert_eq!(alice.does("send_message", alice.me().later(dm, "later", 3_600, 0)).await, true);
    assert_eq!(bob.names_heard().await, [""; 0]);
    let pending = alice.does("get_dm", json!({ "id": dm })).await["scheduled_messages"].clone();
    let (schedule, shown) = pending.as_object().unwrap().iter().next().unwrap();
    assert_eq!(shown["message"], hex::encode("later"));
    assert_eq!(bob.does("get_dm", json!({ "id": dm })).await["scheduled_messages"], json!({}), "the author's alone");
    let cancel = |id: &str| json!({ "dm_id": dm, "schedule_id": id });
    assert_eq!(bob.cannot("cancel_scheduled_message", cancel(schedule)).await, "no_schedule");
    assert_eq!(alice.does("cancel_scheduled_message", cancel(schedule)).await, true);

    alice.says(dm, "before").await;
    let before = alice.hears("message_notification").await;
    bob.hears("message_notification").await;
    assert_eq!(alice.does("send_message", alice.me().later(dm, "in a second", 1, 1)).await, true);
    let schedule = &(schedule.parse::<i64>().unwrap() + 1).to_string();
    let sent = alice.hears("scheduled_message_sent_notification").await;
    assert_eq!(sent, json!({ "dm_id": dm, "schedule_id": schedule.parse::<i64>().unwrap() }));
    let message = alice.hears("message_notification").await;
    assert_eq!(bob.hears("message_notification").await, message);
    let at = |message: &Value| stamp::read(message["timestamp"].as_str().unwrap()).unwrap();
    assert!(at(&message) >= at(&before) + 1_000_000, "not before its time");
    assert!(message["delete_timestamp"].is_string());
    assert_eq!(alice.cannot("cancel_scheduled_message", cancel(schedule)).await, "no_schedule", "it was sent");
    assert_eq!(bob.hears("message_delete_notification").await, message["id"]);
    assert_eq!(bob.cannot("get_message", json!({ "id": message["id"] })).await, "no_message_access");
    bob.says(dm, "next").await;
    assert!(bob.hears("message_notification").await["id"].as_i64() > message["id"].as_i64(), "no number twice");

    // A warning a minute before, unless there is no minute.
    alice.does("send_message", alice.me().later(dm, "soon", 61, 0)).await;
    alice.does("send_message", alice.me().later(dm, "sooner", 60, 0)).await;
    let soon = alice.hears("scheduled_soon_notification").await["schedule_id"].clone();
    assert_eq!(alice.does("cancel_scheduled_message", json!({ "dm_id": dm, "schedule_id": soon })).await, true);
    assert_eq!(
        alice.cannot("cancel_scheduled_message", json!({ "dm_id": dm, "schedule_id": soon })).await,
        "no_schedule"
    );
    for _ in 1..50 {
        alice.does("send_message", alice.me().later(dm, "more", 3600, 0)).await;
    }
    assert_eq!(alice.cannot("send_message", alice.me().later(dm, "more", 3600, 0)).await, "too_many");
    assert_eq!(bob.names_heard().await, [""; 0]);
    world.close().await;
}

pub async fn what_came_due_while_nobody_was_here_is_done_before_anybody_comes(mut ground: Ground) {
    let world = ground.open().await;
    let (mut alice, _bob, dm) = pair(&world).await;
    for (text, schedule, delete) in [("second", 200, 0), ("first", 100, 0), ("gone", 150, 10), ("last", 7_200, 0)] {
        alice.does("send_message", alice.me().later(dm, text, schedule, delete)).await;
    }
    alice.does("send_message", alice.me().later(dm, "short", 0, 3_000)).await;
    alice.does("send_message", alice.me().later(dm, "long", 0, 4_000)).await;
    let pinned = alice.does("get_message_history", json!({ "id": dm, "count": 1 })).await[0]["id"].clone();
    alice.does("set_message", json!({ "id": pinned, "pinned": true })).await;
    world.close().await;

    ground.later = Duration::from_secs(3_600);
    let world = ground.open().await;
    let mut alice = world.again("alice").await;
    let history = alice.does("get_message_history", json!({ "id": dm })).await;
    let texts: Vec<_> = history.as_array().unwrap().iter().map(|it| it["message"].as_str().unwrap()).collect();
    // Sent at the start, the one that goes after ten seconds, too: its time is counted from there.
    let expected = ["second", "gone", "first", "long"].map(hex::encode);
    assert_eq!(texts, expected, "in the order of their times, what was over left out");
    let full = alice.does("get_dm", json!({ "id": dm })).await;
    assert_eq!(full["scheduled_messages"].as_object().unwrap().len(), 1);
    assert_eq!(alice.does("get_pinned", json!({ "id": dm })).await[0]["id"], pinned);
    assert_eq!(alice.does("get_friends", json!({})).await, json!(["bob"]));
    world.close().await;

    // A second start does nothing twice.
    ground.later = Duration::from_secs(3_620);
    let world = ground.open().await;
    let mut alice = world.again("alice").await;
    let history = alice.does("get_message_history", json!({ "id": dm })).await;
    assert_eq!(history.as_array().unwrap().len(), 3);
    world.close().await;
}

pub async fn a_warning_that_nobody_heard_is_repeated_at_the_next_login(mut ground: Ground) {
    let world = ground.open().await;
    let (mut alice, _bob, dm) = pair(&world).await;
    alice.does("send_message", alice.me().later(dm, "later", 3_600, 0)).await;
    world.close().await;

    ground.later = Duration::from_secs(3_560);
    let world = ground.open().await;
    for times in [1, 0] {
        let mut alice = world.again("alice").await;
        let heard = alice.names_heard().await;
        assert_eq!(heard.iter().filter(|name| *name == "scheduled_soon_notification").count(), times);
        alice.leaves().await;
    }
    world.close().await;
}

pub async fn a_schedule_does_not_outlive_the_right_to_speak(mut ground: Ground) {
    let world = ground.open().await;
    let (mut alice, mut bob, dm) = pair(&world).await;
    let _carol = world.somebody("carol").await;
    let trio = alice.does("create_dm", invitation(&["bob", "carol"])).await.as_i64().unwrap();
    alice.does("send_message", alice.me().later(dm, "as friends", 100, 0)).await;
    alice.does("send_message", alice.me().later(trio, "in the group", 100, 0)).await;
    bob.does("send_message", bob.me().later(trio, "from inside", 100, 0)).await;
    bob.does("unfriend", named("alice")).await;
    bob.does("leave_dm", json!({ "id": trio })).await;
    world.close().await;

    ground.later = Duration::from_secs(200);
    let world = ground.open().await;
    let mut alice = world.again("alice").await;
    assert_eq!(alice.does("get_message_history", json!({ "id": dm })).await, json!([]));
    let said = alice.does("get_message_history", json!({ "id": trio })).await;
    assert_eq!((said.as_array().unwrap().len(), &said[0]["message"]), (1, &json!(hex::encode("in the group"))));
    assert_eq!(alice.does("get_dm", json!({ "id": dm })).await["scheduled_messages"], json!({}));
    world.close().await;
}

pub async fn calls_are_joined_left_and_lost(ground: Ground) {
    let world = ground.open().await;
    let (mut alice, mut bob, mut carol, dm) = group(&world).await;
    let join = |uuid: &str| json!({ "id": dm, "uuid": uuid });
    assert_eq!(alice.cannot("leave_call", json!({ "id": dm })).await, "not_in_call");
    assert_eq!(alice.cannot("join_call", join("not a word")).await, "bad_request");
    assert_eq!(alice.does("join_call", join("a-1")).await, json!({ "alice": "a-1" }));
    assert_eq!(bob.does("join_call", join("b_2")).await, json!({ "alice": "a-1", "bob": "b_2" }));
    assert_eq!(carol.hears("user_joined_call").await, json!({ "id": dm, "username": "alice" }));
    assert_eq!(carol.hears("user_joined_call").await, json!({ "id": dm, "username": "bob" }));
    carol.hears("dm_notification").await;
    let shown = carol.hears("dm_notification").await;
    assert_eq!(
        (&shown["users_in_call"], &shown["call_peers"]),
        (&json!(["alice", "bob"]), &json!({ "alice": "a-1", "bob": "b_2" }))
    );
    // Another connection of hers does not take her out of it; the one that joined does.
    world.again("alice").await.leaves().await;
    carol.heard().await;
    alice.leaves().await;
    assert_eq!(carol.hears("user_left_call").await, json!({ "id": dm, "username": "alice" }));
    assert_eq!(carol.hears("dm_notification").await["users_in_call"], json!(["bob"]));
    assert_eq!(bob.does("leave_call", json!({ "id": dm })).await, true);
    assert_eq!(carol.hears("user_left_call").await["username"], "bob");
    let of_himself = json!({ "id": dm, "username": "bob" });
    assert!(bob.heard().await.iter().all(|(_, said)| *said != of_himself), "who joins and leaves knows");
    assert_eq!(carol.does("get_dm", json!({ "id": dm })).await["users_in_call"], json!([]));
    world.close().await;
}

pub async fn leaving_ends_access_and_the_last_one_takes_everything(ground: Ground) {
    let world = ground.open().await;
    let (mut alice, mut bob, mut carol, dm) = group(&world).await;
    alice.says(dm, "hello").await;
    alice.heard().await;
    carol.heard().await;
    alice.does("join_call", json!({ "id": dm, "uuid": "a" })).await;
    alice.heard().await;
    carol.heard().await;
    assert_eq!(alice.does("leave_dm", json!({ "id": dm })).await, true);
    assert_eq!(carol.hears("user_left_call").await["username"], "alice");
    let told = carol.hears("dm_notification").await;
    assert_eq!((&told["users"], &told["users_in_call"]), (&json!(["bob", "carol"]), &json!([])));
    bob.says(dm, "without her").await;
    assert_eq!(alice.names_heard().await, [""; 0], "who left hears nothing");
    assert_eq!(alice.cannot("get_message_history", json!({ "id": dm })).await, "no_dm_access");
    assert_eq!(alice.does("get_dms", json!({})).await, json!([]));
    // Of a group two are left, and they need no friendship.
    carol.says(dm, "still a group").await;
    bob.does("leave_dm", json!({ "id": dm })).await;
    carol.heard().await;
    assert_eq!(carol.does("leave_dm", json!({ "id": dm })).await, true);
    assert_eq!(carol.heard().await, []);
    for client in [&mut bob, &mut carol] {
        assert_eq!(client.cannot("get_dm", json!({ "id": dm })).await, "no_dm_access");
    }
    world.close().await;
}

pub async fn several_connections_of_one_user_hear_the_same(ground: Ground) {
    let world = ground.open().await;
    let (mut alice, mut bob, dm) = pair(&world).await;
    let mut tablet = world.again("alice").await;
    bob.heard().await;
    alice.says(dm, "from one").await;
    bob.says(dm, "to both").await;
    for client in [&mut alice, &mut tablet] {
        for text in ["from one", "to both"] {
            assert_eq!(client.hears("message_notification").await["message"], hex::encode(text));
        }
    }
    alice.does("ping_typing", json!({ "id": dm })).await;
    assert_eq!((tablet.hears("typing_notification").await["id"].clone(), alice.heard().await), (json!(dm), vec![]));
    let mut many = Vec::new();
    for _ in 0..18 {
        many.push(world.again("alice").await);
    }
    let mut one_more = world.stranger().await;
    let challenge = one_more.does("login", named("alice")).await;
    let mut point = [0; 32];
    hex::decode_to_slice(challenge.as_str().unwrap(), &mut point).unwrap();
    let response = hex::encode(Account::of("alice").identity.answer("alice", &point));
    assert_eq!(one_more.cannot("login_challenge_response", json!({ "response": response })).await, "too_many");
    world.close().await;
}

pub async fn a_thousand_messages_at_once_stay_in_order(ground: Ground) {
    let world = ground.open().await;
    let (mut alice, mut bob, dm) = pair(&world).await;
    let mut acks = Vec::new();
    for n in 0..1_000 {
        let message = alice.me().message(dm, &n.to_string());
        acks.push(alice.ask("send_message", message).await);
    }
    for ack in acks {
        assert_eq!(alice.answer(ack).await["result"], true);
    }
    let mut last = (0, String::new());
    for n in 0..1_000 {
        let message = bob.hears("message_notification").await;
        assert_eq!(message["message"], hex::encode(n.to_string()));
        let this = (message["id"].as_i64().unwrap(), message["timestamp"].as_str().unwrap().to_owned());
        assert!(this > last && this.1 > last.1, "ids and times rise");
        last = this;
    }
    world.close().await;
}
