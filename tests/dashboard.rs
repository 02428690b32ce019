//! The dashboard in a real browser: the real binary, real devices, and what a person sees then.
//!
//! Screenshots go to `target/dashboard/`.

#![allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::panic, reason = "a test may panic")]

#[path = "common/binary.rs"]
mod binary;
#[path = "common/browser.rs"]
mod browser;
mod common;

use std::process::Command;

use fantoccini::Locator;
use heliostat::wire::d2m::ReflectFlags;

use self::binary::Binary;
use self::browser::{Browser, Page};
use self::common::{Family, soon};

/// The numbers of the doors, the devices of two groups, and how the page says so.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_person_sees_who_is_connected_who_leads_what_waits_and_that_it_drains() {
    let Some(browser) = Browser::open().await else { return };
    let page = browser.page.clone();
    browser.tells(story(page)).await;
}

async fn story(page: Page) {
    let data = tempfile::tempdir().unwrap();
    let mut server = Binary::start(&data.path().join("data"));
    page.looks(1200, 1000, "light").await;
    page.0.goto(server.admin()).await.unwrap();
    page.shows("#state", "Ready").await;
    page.shows("#connections", "0").await;
    page.shows("#groups-none", "No group is awake").await;
    page.shows("#certificate-state", "No TLS").await;
    page.shows("#durability", "fsync").await;
    page.shows("#version", env!("CARGO_PKG_VERSION")).await;

    // Three devices, one of them away, and a group whose leader holds the lock.
    let family = Family::new(server.mediator());
    let (mut phone, mut tablet) = (family.joins(1).await, family.joins(2).await);
    drop(family.joins(3).await);
    let other = Family::new(server.mediator());
    let (mut desk, watch) = (other.joins(1).await, other.joins(2).await);
    soon(desk.begin(b"", 90)).await.unwrap();
    soon(desk.reflect_and_wait(b"staged", ReflectFlags::default())).await.unwrap();
    for _ in 0..5 {
        soon(phone.reflect_and_wait(b"to the others", ReflectFlags::default())).await.unwrap();
    }
    page.shows("#connections", "4").await;
    page.shows("#groups-awake", "2").await;
    page.has(".group", 2).await;
    page.has(".device", 5).await;
    page.has(".device[data-leader=true]", 2).await;
    page.has(".device[data-connected=false]", 1).await;
    page.shows(".device[data-connected=false]", "away · 5 waiting").await;
    page.shows(".device[data-leader=true]", "leads, ").await;
    page.shows("#deepest", "5").await;
    page.shows(".lock", "Lock held by").await;
    page.shows(".lock", "left, 1 message staged").await;
    page.shows("#locked", "1 lock held").await;
    page.has(".lock meter", 1).await;
    page.has("#chart-connections polyline", 1).await;

    // Nobody's id is on the page.
    let everything = page.text("body").await;
    let id = hex::encode(family.key.device_group_id().as_bytes());
    assert!(!everything.contains(&id[..12]) && !everything.contains("0000000000000001"), "{everything}");

    // An operator ends a connection elsewhere; the page counts it under its code, and in words.
    let kick = ["admin", "kick", &id, "2", "--admin", server.admin()];
    assert!(Command::new(env!("CARGO_BIN_EXE_heliostat")).args(kick).status().unwrap().success());
    soon(tablet.wait_ended()).await;
    page.shows("#closed tr[data-code='1001']", "the mediator is shutting down 1").await;
    page.shows("#connections", "3").await;

    // On a phone, in the dark, by the keyboard.
    let mut grounds = Vec::new();
    for (name, width, height, scheme) in [
        ("light.png", 1200, 1250, "light"),
        ("dark.png", 1200, 1250, "dark"),
        ("phone-light.png", 390, 2600, "light"),
        ("phone-dark.png", 390, 2600, "dark"),
    ] {
        page.looks(width, height, scheme).await;
        let overflow = "return document.documentElement.scrollWidth - document.documentElement.clientWidth";
        assert_eq!(page.evaluate(overflow).await, 0, "{name}: nothing is cut off or to be scrolled for sideways");
        grounds.push(page.evaluate("return getComputedStyle(document.body).backgroundColor").await);
        page.screenshot("dashboard", name).await;
    }
    assert!(grounds[0] == grounds[2] && grounds[1] == grounds[3] && grounds[0] != grounds[1], "{grounds:?}");
    page.looks(1200, 1000, "light").await;
    presses_to_pause_and_resume(&page).await;
    let nameless = "return [...document.querySelectorAll('svg[role=img], meter, button, section, ul.devices')]
        .filter(it => !(it.textContent.trim() && it.matches('button')) && !it.getAttribute('aria-label')
            && !it.getAttribute('aria-labelledby')).length";
    assert_eq!(page.evaluate(nameless).await, 0, "everything that is drawn has a name");
    assert_eq!(page.complaints().await, [""; 0]);

    // Whoever does not answer the farewell keeps the drain going for a while.
    let _silent = family.opens().await;
    let drain = ["admin", "drain", "--admin", server.admin()];
    assert!(Command::new(env!("CARGO_BIN_EXE_heliostat")).args(drain).status().unwrap().success());
    page.shows("#state", "Draining").await;
    assert!(soon(server.ended()).await.success());
    page.shows("#state", "No answer from the server").await;
    drop((phone, desk, watch));
}

/// With nothing but keys.
async fn presses_to_pause_and_resume(page: &Page) {
    page.evaluate("document.activeElement.blur(); window.scrollTo(0, 0)").await;
    for (pressed, label) in [("true", "Resume"), ("false", "Pause")] {
        let button = page.0.find(Locator::Css("#pause")).await.unwrap();
        // By the Tab key from the top of the page: past the link that skips what comes before the numbers.
        let mut keys = 0;
        while page.evaluate("return document.activeElement.id").await != "pause" {
            let active = page.0.active_element().await.unwrap();
            active.send_keys("\u{e004}").await.unwrap();
            keys += 1;
            assert!(keys < 10, "the button is reached by the keyboard");
        }
        button.send_keys(" ").await.unwrap();
        assert_eq!(button.attr("aria-pressed").await.unwrap().as_deref(), Some(pressed));
        assert_eq!(button.text().await.unwrap(), label);
    }
}
