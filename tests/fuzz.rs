//! The targets of the fuzzer, over the corpus that is kept and thousands of texts like it: always
//! the same ones, so that what fails can be played again.

use std::fs;
use std::panic::catch_unwind;
use std::path::Path;

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

#[path = "../fuzz/src/lib.rs"]
pub mod targets;

use targets::{ALL, Target};

const SEED: u64 = 20_260_101;
/// Changes of each text.
const MOST_EDITS: usize = 6;
/// Of no target's inputs anything larger gets in.
const MOST_BYTES: usize = 64 * 1024;

/// What the readers look for.
const WORDS: [&[u8]; 40] = [
    b"{",
    b"}",
    b"[",
    b"]",
    b"\"",
    b"\\u0000",
    b"\\ud800",
    b":",
    b",",
    b"null",
    b"1e999",
    b"-0",
    b"18446744073709551616",
    b".",
    b"..",
    b"/",
    b"//",
    b"%",
    b"%2e",
    b"%00",
    b"%ff",
    b"?",
    b"#",
    b"&",
    b"=",
    b";",
    b"~",
    b"-",
    b"@",
    b"\r\n",
    b"\n",
    b"\0",
    b"\xff",
    b"\xe2\x80\xae",
    b"${",
    b"{{",
    b"'''",
    b"\"\"\"",
    b"eyJhbGciOiJub25lIn0",
    b"bearer.",
];

fn corpus(name: &str) -> Vec<Vec<u8>> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("fuzz/corpus")
        .join(name);
    let files =
        fs::read_dir(&folder).unwrap_or_else(|error| panic!("{}: {error}", folder.display()));
    let mut files: Vec<_> = files.map(|file| file.expect("a file").path()).collect();
    files.sort();
    assert!(files.len() >= 3, "{name} has only {} files", files.len());
    files
        .iter()
        .map(|file| fs::read(file).expect("a file can be read"))
        .collect()
}

/// Plays one text, and says which it was if that fails.
fn play((name, target): Target, text: &[u8]) {
    let text = &text[..text.len().min(MOST_BYTES)];
    if catch_unwind(|| target(text)).is_err() {
        panic!("{name} fails for b\"{}\"", text.escape_ascii());
    }
}

fn changed(corpus: &[Vec<u8>], random: &mut StdRng) -> Vec<u8> {
    let mut text = corpus[random.random_range(0..corpus.len())].clone();
    for _ in 0..random.random_range(1..=MOST_EDITS) {
        let at = random.random_range(0..=text.len());
        let end = random.random_range(at..=text.len().min(at + 32));
        match random.random_range(0..6) {
            0 => drop(text.drain(at..end)),
            1 => {
                let part = text[at..end].to_vec();
                let times = random.random_range(1..200);
                drop(text.splice(at..at, part.repeat(times)));
            }
            2 => {
                let word = WORDS[random.random_range(0..WORDS.len())];
                drop(text.splice(at..end, word.iter().copied()));
            }
            3 => {
                let word = WORDS[random.random_range(0..WORDS.len())];
                drop(text.splice(at..at, word.iter().copied()));
            }
            4 => {
                let other = &corpus[random.random_range(0..corpus.len())];
                let from = random.random_range(0..=other.len());
                text.truncate(at);
                text.extend(&other[from..]);
            }
            _ => {
                let byte = random.random_range(0..=u8::MAX);
                drop(text.splice(at..(at + 1).min(text.len()), [byte]));
            }
        }
    }
    text
}

fn run(name: &str, times: usize) {
    let target = *ALL
        .iter()
        .find(|(known, _)| *known == name)
        .expect("a target");
    let corpus = corpus(name);
    for text in &corpus {
        play(target, text);
    }
    let mut random = StdRng::seed_from_u64(SEED);
    for _ in 0..times {
        play(target, &changed(&corpus, &mut random));
    }
}

macro_rules! runs {
    ($($name:ident: $times:literal,)*) => {
        $(
            #[test]
            fn $name() {
                run(stringify!($name), $times);
            }
        )*

        #[test]
        fn every_target_is_run_and_built() {
            let names = ALL.map(|(name, _)| name);
            assert_eq!(names, [$(stringify!($name)),*]);
            let manifest = include_str!("../fuzz/Cargo.toml");
            for name in names {
                assert!(manifest.contains(&format!("path = \"fuzz_targets/{name}.rs\"")), "{name}");
            }
        }
    };
}

runs! {
    claims: 3_000,
    client_message: 5_000,
    config: 1_500,
    cursor: 5_000,
    entry: 3_000,
    headers: 3_000,
    redis_url: 1_000,
    request: 3_000,
    snapshot: 3_000,
    token: 3_000,
}
