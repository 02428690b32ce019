//! The fuzz targets' bodies over their committed corpora, so that they compile and hold without a fuzzer. What a fuzzer
//! found once is among them.

#![allow(clippy::unwrap_used, clippy::indexing_slicing, missing_docs, unreachable_pub, reason = "a test may panic")]

use std::path::Path;

#[path = "../fuzz/bodies.rs"]
mod bodies;

fn each_input(target: &str, body: fn(&[u8])) {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus").join(target);
    let mut files: Vec<_> = std::fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path()).collect();
    files.sort();
    assert!(!files.is_empty(), "{target} has no corpus");
    for file in files {
        let input = std::fs::read(&file).unwrap();
        // Whole, and cut off at each of the lengths that are worth the time.
        for len in (0..input.len()).rev().take(256).chain(0..input.len().min(256)) {
            body(&input[..len]);
        }
        println!("{}", file.display());
        body(&input);
    }
}

macro_rules! targets {
    ($($target:ident)*) => { $(
        #[test]
        fn $target() {
            each_input(stringify!($target), bodies::$target);
        }
    )* };
}

targets! {
    capture d2m_container d2m_url proxy_header await_client_hello csp_login csp_container skynet_packet cutters ranges
    group chatos_room tox_group
}
