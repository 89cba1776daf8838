//! What is drawn, and what it has to be: the files of the same run without a cluster.

use dg_testkit::program::{command, finish};
use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

/// Names and contents of files.
pub(crate) type Pictures = BTreeMap<String, Vec<u8>>;

/// A run of `t2i`, wherever it is made.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Drawing {
    what: Vec<String>,
    how: Vec<String>,
    prompts: String,
}

impl Drawing {
    /// One small picture of the built-in model.
    pub(crate) fn small(steps: u32, seed: u64) -> Self {
        Self::of(&["--height", "128", "--width", "128", "--prompt", "red apple"]).steps(steps).seed(seed)
    }

    /// These flags.
    pub(crate) fn of(what: &[&str]) -> Self {
        Self { what: what.iter().map(|&flag| flag.into()).collect(), how: Vec::new(), prompts: String::new() }
    }

    pub(crate) fn steps(self, steps: u32) -> Self {
        self.with(&["--num_inference_steps", &steps.to_string()])
    }

    pub(crate) fn seed(self, seed: u64) -> Self {
        self.with(&["--seed", &seed.to_string()])
    }

    /// More flags that change the picture.
    pub(crate) fn with(mut self, flags: &[&str]) -> Self {
        self.what.extend(flags.iter().map(|&flag| flag.into()));
        self
    }

    /// Flags about ranks.
    pub(crate) fn degrees(mut self, flags: &[&str]) -> Self {
        self.how = flags.iter().map(|&flag| flag.into()).collect();
        self
    }

    /// A file of prompts.
    pub(crate) fn prompts(mut self, lines: &[&str]) -> Self {
        self.prompts = lines.join("\n") + "\n";
        self.with(&["--prompts_file", "prompts.txt"])
    }

    /// The same by one rank.
    pub(crate) fn serial(&self) -> Self {
        Self { how: Vec::new(), ..self.clone() }
    }

    pub(crate) fn args(&self) -> impl Iterator<Item = &str> {
        let flags = self.what.iter().chain(&self.how).map(String::as_str);
        ["t2i", "--quiet"].into_iter().chain(flags)
    }

    pub(crate) fn prepare(&self, folder: &Path) {
        if !self.prompts.is_empty() {
            fs::write(folder.join("prompts.txt"), &self.prompts).expect("the folder is writable");
        }
    }

    /// The files of this run in one process without a cluster. Each is made once.
    pub(crate) fn undisturbed(&self) -> Pictures {
        static MADE: Mutex<BTreeMap<Drawing, Pictures>> = Mutex::new(BTreeMap::new());
        if let Some(pictures) = MADE.lock().unwrap_or_else(PoisonError::into_inner).get(self) {
            return pictures.clone();
        }
        let place = tempfile::tempdir().expect("a temporary folder");
        self.prepare(place.path());
        let args: Vec<&str> = self.args().collect();
        let child = command(&args, place.path()).spawn().expect("the program was just built");
        finish(child, Duration::from_secs(120)).expect_success();
        let pictures = read_pictures(&place.path().join("output"));
        assert!(!pictures.is_empty());
        MADE.lock().unwrap_or_else(PoisonError::into_inner).insert(self.clone(), pictures.clone());
        pictures
    }
}

/// The files of a folder; none if it is not there.
pub(crate) fn read_pictures(folder: &Path) -> Pictures {
    let files = fs::read_dir(folder).into_iter().flatten().flatten();
    let read = |file: fs::DirEntry| {
        let name = file.file_name().to_string_lossy().into_owned();
        (name, fs::read(file.path()).expect("a readable file"))
    };
    files.map(read).collect()
}

/// Panics unless these are the same files.
pub(crate) fn expect_same(have: &Pictures, wanted: &Pictures, about: &str) {
    let names = |pictures: &Pictures| pictures.keys().cloned().collect::<Vec<_>>();
    assert_eq!(names(have), names(wanted), "{about}");
    for (name, bytes) in have {
        assert!(Some(bytes) == wanted.get(name), "{about}: {name} is another picture");
    }
}

/// Degrees whose pictures are those of one rank, bit for bit.
pub(crate) const ULYSSES_4: &[&str] = &["--ulysses_degree", "4"];
