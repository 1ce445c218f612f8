//! A wall clock that is set while a program runs by it, made with the faketime library. Monotonic time goes on.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

pub(super) struct FakeClock {
    file: PathBuf,
    library: String,
}

impl FakeClock {
    /// Kept in that folder; right at first.
    pub(super) fn in_folder(dir: &Path) -> Self {
        let listed = Command::new("dpkg").args(["-L", "libfaketime"]).output();
        let listed = String::from_utf8(listed.unwrap().stdout).unwrap();
        let mut lines = listed.lines();
        let library = lines.find(|line| line.ends_with("libfaketime.so.1"));
        let clock = Self {
            file: dir.join("clock"),
            library: library.unwrap().to_owned(),
        };
        clock.set("+0");
        clock
    }

    /// As faketime(1) says it, from the true time: `-25h`.
    pub(super) fn set(&self, offset: &str) {
        // Whole or not at all: a program may be reading it.
        let new = self.file.with_extension("new");
        fs::write(&new, offset).unwrap();
        fs::rename(new, &self.file).unwrap();
    }

    /// What makes a program go by it.
    pub(super) fn env(&self) -> Vec<(String, String)> {
        let file = self.file.to_str().unwrap();
        let pairs = [
            ("LD_PRELOAD", self.library.as_str()),
            ("FAKETIME_TIMESTAMP_FILE", file),
            ("FAKETIME_NO_CACHE", "1"),
            ("FAKETIME_DONT_FAKE_MONOTONIC", "1"),
        ];
        let pairs = pairs.map(|(name, value)| (name.to_owned(), value.to_owned()));
        pairs.to_vec()
    }
}
