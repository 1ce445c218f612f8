//! What a power cut leaves of a program's files.
//!
//! A program is run under strace, which writes down each system call that changes a file. From any prefix of
//! these calls [`Recording::cut`] makes a folder as a power cut at that moment may have left it: what was
//! fsynced is there; of what was not, some writes are, some are torn, some are not; names are created, changed
//! and removed in order, but only up to some point after the last fsync of their folder. That is less than
//! any journaling file system promises.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
};

use rand::{RngExt as _, rngs::StdRng};
use tokio::process::Command;

use crate::{
    fault::{Fault, Outcome},
    process,
};

/// A torn write ends at a multiple of this.
const SECTOR: usize = 512;

/// One call that matters.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Call {
    /// A file was made or emptied.
    Create(PathBuf),
    Truncate(PathBuf, usize),
    Write(PathBuf, usize, Vec<u8>),
    Sync(PathBuf),
    Rename(PathBuf, PathBuf),
    Unlink(PathBuf),
    Mkdir(PathBuf),
    /// A line on standard output.
    Promise(String),
}

/// What a program did to the files in one folder.
#[derive(Debug)]
pub struct Recording {
    root: PathBuf,
    calls: Vec<Call>,
}

impl Recording {
    /// Runs `program` with `args` under strace and keeps what it did below `root`.
    pub async fn of(program: &Path, args: &[&str], root: &Path, trace: &Path) -> Outcome<Self> {
        let mut command = Command::new("strace");
        command
            .args([
                "-f",
                "-y",
                "-xx",
                "-s",
                "10000000",
                "-e",
                "trace=desc,file",
                "-o",
            ])
            .arg(trace)
            .arg(program)
            .args(args);
        let output = process::run(&mut command, b"").await?;
        if !output.status.success() {
            return Err(Fault::new(format!("{program:?}: {output:?}")));
        }
        let text = fs::read_to_string(trace).map_err(Fault::io(trace.display()))?;
        let mut reader = Reader {
            root,
            places: BTreeMap::new(),
            sizes: BTreeMap::new(),
            begun: BTreeMap::new(),
        };
        let calls = text.lines().filter_map(|line| reader.read(line));
        Ok(Self {
            root: root.to_owned(),
            calls: calls.collect(),
        })
    }

    /// How many calls there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.calls.len()
    }

    /// Whether nothing was done.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.calls.is_empty()
    }

    /// Makes in `dir`, which must not exist, what a cut after `calls` calls may leave; returns what the program
    /// had promised by then.
    pub fn cut(&self, calls: usize, dir: &Path, chance: &mut StdRng) -> Outcome<Vec<&str>> {
        let mut disk = Disk::default();
        let mut promises = Vec::new();
        for call in self.calls.iter().take(calls) {
            match call {
                Call::Promise(text) => promises.push(text.as_str()),
                call => disk.take(call),
            }
        }
        fs::create_dir_all(dir).map_err(Fault::io(dir.display()))?;
        disk.leave(&self.root, dir, chance)?;
        Ok(promises)
    }
}

/// Understands strace's lines.
struct Reader<'a> {
    root: &'a Path,
    /// Where the next write of a descriptor goes; `None`: to the end.
    places: BTreeMap<String, Option<usize>>,
    sizes: BTreeMap<PathBuf, usize>,
    /// Calls that have not returned yet, by thread.
    begun: BTreeMap<String, String>,
}

impl Reader<'_> {
    /// A call that another thread's interrupts is told in two lines; it counts when it has returned.
    fn read(&mut self, line: &str) -> Option<Call> {
        let (thread, call) = line.split_once(' ')?;
        if let Some(begun) = call.strip_suffix(" <unfinished ...>") {
            self.begun
                .insert(thread.to_owned(), begun.trim().to_owned());
            return None;
        }
        if let Some((_, rest)) = call
            .trim_start()
            .strip_prefix("<... ")
            .and_then(|c| c.split_once(" resumed>"))
        {
            let whole = format!("{}{rest}", self.begun.remove(thread)?);
            return self.call(&whole);
        }
        self.call(call)
    }

    fn call(&mut self, call: &str) -> Option<Call> {
        let (name, rest) = call.trim_start().split_once('(')?;
        let (arguments, result) = rest.rsplit_once(" = ")?;
        let arguments = arguments.trim_end().strip_suffix(')')?;
        if result.starts_with('-') {
            return None;
        }
        let arguments: Vec<&str> = arguments.split(", ").collect();
        match name {
            "openat" => self.open(arguments.get(1)?, arguments.get(2)?, result),
            "write" => self.write(arguments.first()?, arguments.get(1)?, None),
            "pwrite64" => {
                let offset = arguments.get(3)?.parse().ok()?;
                self.write(arguments.first()?, arguments.get(1)?, Some(offset))
            }
            "ftruncate" => {
                let path = self.within(&annotated(arguments.first()?)?)?;
                let size = arguments.get(1)?.parse().ok()?;
                self.sizes.insert(path.clone(), size);
                Some(Call::Truncate(path, size))
            }
            "fsync" | "fdatasync" => {
                Some(Call::Sync(self.within(&annotated(arguments.first()?)?)?))
            }
            "rename" => {
                let from = self.within(&quoted(arguments.first()?)?)?;
                let to = self.within(&quoted(arguments.get(1)?)?)?;
                let size = self.sizes.remove(&from).unwrap_or(0);
                self.sizes.insert(to.clone(), size);
                Some(Call::Rename(from, to))
            }
            "unlink" => {
                let path = self.within(&quoted(arguments.first()?)?)?;
                self.sizes.remove(&path);
                Some(Call::Unlink(path))
            }
            "mkdir" => Some(Call::Mkdir(self.within(&quoted(arguments.first()?)?)?)),
            _ => None,
        }
    }

    fn open(&mut self, path: &str, flags: &str, result: &str) -> Option<Call> {
        let path = self.within(&quoted(path)?)?;
        let descriptor = result.split('<').next()?.to_owned();
        let append = flags.contains("O_APPEND");
        self.places.insert(descriptor, (!append).then_some(0));
        let fresh = flags.contains("O_CREAT") && !self.sizes.contains_key(&path);
        if fresh || flags.contains("O_TRUNC") {
            self.sizes.insert(path.clone(), 0);
            return Some(Call::Create(path));
        }
        None
    }

    fn write(&mut self, descriptor: &str, data: &str, offset: Option<usize>) -> Option<Call> {
        let data = bytes(data)?;
        let number = descriptor.split('<').next()?;
        if number == "1" {
            let text = String::from_utf8(data).ok()?;
            return Some(Call::Promise(text.trim_end().to_owned()));
        }
        let path = self.within(&annotated(descriptor)?)?;
        let size = self.sizes.entry(path.clone()).or_default();
        let offset = match (offset, self.places.get_mut(number)) {
            (Some(offset), _) => offset,
            (None, Some(Some(place))) => {
                let offset = *place;
                *place += data.len();
                offset
            }
            _ => *size,
        };
        *size = (*size).max(offset + data.len());
        Some(Call::Write(path, offset, data))
    }

    fn within(&self, path: &Path) -> Option<PathBuf> {
        path.starts_with(self.root).then(|| path.to_owned())
    }
}

/// `5<\x2f…>`
fn annotated(descriptor: &str) -> Option<PathBuf> {
    let (_, path) = descriptor.split_once('<')?;
    text(path.strip_suffix('>')?)
}

/// `"\x2f…"`
fn quoted(path: &str) -> Option<PathBuf> {
    text(path.strip_prefix('"')?.strip_suffix('"')?)
}

fn text(hex: &str) -> Option<PathBuf> {
    String::from_utf8(unhex(hex)?).ok().map(PathBuf::from)
}

fn bytes(data: &str) -> Option<Vec<u8>> {
    unhex(data.strip_prefix('"')?.strip_suffix('"')?)
}

/// `\x2f\x74…`
fn unhex(hex: &str) -> Option<Vec<u8>> {
    hex.split("\\x")
        .skip(1)
        .map(|digits| u8::from_str_radix(digits, 16).ok())
        .collect()
}

/// A change of a file's content.
#[derive(Debug, Clone)]
enum Change {
    Truncate(usize),
    Write(usize, Vec<u8>),
}

impl Change {
    fn apply(&self, content: &mut Vec<u8>) {
        match self {
            Self::Truncate(size) => content.resize(*size, 0),
            Self::Write(offset, data) => {
                let end = offset + data.len();
                if content.len() < end {
                    content.resize(end, 0);
                }
                if let Some(place) = content.get_mut(*offset..end) {
                    place.copy_from_slice(data);
                }
            }
        }
    }
}

#[derive(Debug, Default)]
struct File {
    durable: Vec<u8>,
    pending: Vec<Change>,
}

/// A change of a folder. Files are known by number, since names change.
#[derive(Debug, Clone)]
enum Naming {
    Is(PathBuf, usize),
    IsNot(PathBuf),
}

#[derive(Debug, Default)]
struct Disk {
    files: Vec<File>,
    /// As programs see it.
    names: BTreeMap<PathBuf, usize>,
    durable: BTreeMap<PathBuf, usize>,
    /// By folder, in order.
    pending: BTreeMap<PathBuf, Vec<Vec<Naming>>>,
    folders: Vec<PathBuf>,
}

impl Disk {
    fn take(&mut self, call: &Call) {
        match call {
            Call::Create(path) => match self.names.get(path).copied() {
                Some(number) => self.change(number, Change::Truncate(0)),
                None => {
                    let number = self.files.len();
                    self.files.push(File::default());
                    self.names.insert(path.clone(), number);
                    self.name(path, vec![Naming::Is(path.clone(), number)]);
                }
            },
            Call::Truncate(path, size) => self.change_at(path, Change::Truncate(*size)),
            Call::Write(path, offset, data) => {
                self.change_at(path, Change::Write(*offset, data.clone()));
            }
            Call::Sync(path) => match self.names.get(path).copied() {
                Some(number) => {
                    if let Some(file) = self.files.get_mut(number) {
                        for change in std::mem::take(&mut file.pending) {
                            change.apply(&mut file.durable);
                        }
                    }
                }
                None => {
                    for naming in self.pending.remove(path).unwrap_or_default() {
                        apply(&mut self.durable, &naming);
                    }
                }
            },
            Call::Rename(from, to) => {
                if let Some(number) = self.names.remove(from) {
                    self.names.insert(to.clone(), number);
                    let is = Naming::Is(to.clone(), number);
                    self.name(to, vec![Naming::IsNot(from.clone()), is]);
                }
            }
            Call::Unlink(path) => {
                self.names.remove(path);
                self.name(path, vec![Naming::IsNot(path.clone())]);
            }
            // The programs make their folders once; what if those are gone is not the question here.
            Call::Mkdir(path) => self.folders.push(path.clone()),
            Call::Promise(_) => {}
        }
    }

    fn change_at(&mut self, path: &Path, change: Change) {
        if let Some(number) = self.names.get(path).copied() {
            self.change(number, change);
        }
    }

    fn change(&mut self, number: usize, change: Change) {
        if let Some(file) = self.files.get_mut(number) {
            file.pending.push(change);
        }
    }

    fn name(&mut self, path: &Path, naming: Vec<Naming>) {
        let folder = path.parent().unwrap_or(path).to_owned();
        self.pending.entry(folder).or_default().push(naming);
    }

    fn leave(mut self, root: &Path, dir: &Path, chance: &mut StdRng) -> Outcome {
        for namings in self.pending.values() {
            let kept = chance.random_range(0..=namings.len());
            for naming in namings.iter().take(kept) {
                apply(&mut self.durable, naming);
            }
        }
        let place = |path: &Path| dir.join(path.strip_prefix(root).unwrap_or(path));
        for folder in &self.folders {
            let folder = place(folder);
            nexus_pki::files::create_folder(&folder)
                .map_err(|error| Fault::new(format!("{}: {error}", folder.display())))?;
        }
        for (path, number) in &self.durable {
            let Some(file) = self.files.get(*number) else {
                continue;
            };
            let mut content = file.durable.clone();
            for change in &file.pending {
                if let Some(change) = torn(change, chance) {
                    change.apply(&mut content);
                }
            }
            let path = place(path);
            let name = path.file_name().unwrap_or_default().to_string_lossy();
            let folder = path.parent().unwrap_or(dir);
            // Private files, as the program made them.
            nexus_pki::files::write_private(folder, &name, &content)
                .map_err(|error| Fault::new(format!("{}: {error}", path.display())))?;
        }
        Ok(())
    }
}

fn apply(names: &mut BTreeMap<PathBuf, usize>, naming: &[Naming]) {
    for one in naming {
        match one {
            Naming::Is(path, number) => names.insert(path.clone(), *number),
            Naming::IsNot(path) => names.remove(path),
        };
    }
}

/// What became of a change that nobody waited for: it is there, in part, or not at all.
fn torn(change: &Change, chance: &mut StdRng) -> Option<Change> {
    match chance.random_range(0..3) {
        0 => None,
        1 => match change {
            Change::Write(offset, data) => {
                let sectors = data.len() / SECTOR;
                let kept = chance.random_range(0..=sectors) * SECTOR;
                let data = data.get(..kept)?.to_vec();
                Some(Change::Write(*offset, data))
            }
            Change::Truncate(_) => None,
        },
        _ => Some(change.clone()),
    }
}

#[cfg(test)]
mod tests {
    use rand::SeedableRng as _;

    use super::*;

    fn recording() -> Recording {
        let file = PathBuf::from("/d/f");
        Recording {
            root: "/d".into(),
            calls: vec![
                Call::Create(file.clone()),
                Call::Write(file.clone(), 0, b"one".to_vec()),
                Call::Sync(file.clone()),
                Call::Sync("/d".into()),
                Call::Promise("one".to_owned()),
                Call::Write(file.clone(), 3, b"two".to_vec()),
                Call::Rename(file, "/d/g".into()),
            ],
        }
    }

    #[test]
    fn what_was_synced_is_there_and_the_rest_may_be() {
        let dir = tempfile::tempdir().unwrap();
        let (mut names, mut contents) = (Vec::new(), Vec::new());
        for seed in 0..50 {
            let to = dir.path().join(seed.to_string());
            let mut chance = StdRng::seed_from_u64(seed);
            let recording = recording();
            let promises = recording.cut(recording.len(), &to, &mut chance).unwrap();
            assert_eq!(promises, ["one"]);
            let found: Vec<_> = fs::read_dir(&to).unwrap().flatten().collect();
            assert_eq!(found.len(), 1, "{found:?}");
            names.push(found[0].file_name());
            let content = fs::read(found[0].path()).unwrap();
            assert!(content.starts_with(b"one"), "{content:?}");
            contents.push(content);
        }
        assert!(names.contains(&"f".into()) && names.contains(&"g".into()));
        assert!(contents.contains(&b"one".to_vec()) && contents.contains(&b"onetwo".to_vec()));
    }

    #[test]
    fn straces_lines_are_understood() {
        let mut reader = Reader {
            root: Path::new("/d"),
            places: BTreeMap::new(),
            sizes: BTreeMap::new(),
            begun: BTreeMap::new(),
        };
        let open = r#"7 openat(AT_FDCWD<\x2f>, "\x2f\x64\x2f\x66", O_WRONLY|O_CREAT|O_APPEND, 0600) = 5<\x2f\x64\x2f\x66>"#;
        assert_eq!(reader.read(open), Some(Call::Create("/d/f".into())));
        let write = r#"7 write(5<\x2f\x64\x2f\x66>, "\x61\x62", 2) = 2"#;
        let expected = |offset| Some(Call::Write("/d/f".into(), offset, b"ab".to_vec()));
        assert_eq!(reader.read(write), expected(0));
        assert_eq!(reader.read(write), expected(2));
        let begun = r#"7 write(5<\x2f\x64\x2f\x66>, "\x61\x62", 2 <unfinished ...>"#;
        assert_eq!(reader.read(begun), None);
        assert_eq!(reader.read(r#"7 <... write resumed>) = 2"#), expected(4));
        let promise = r#"7 write(1<\x70>, "\x61\x0a", 2) = 2"#;
        assert_eq!(reader.read(promise), Some(Call::Promise("a".to_owned())));
        assert_eq!(
            reader.read(r#"7 unlink("\x2f\x64\x2f\x67") = -1 ENOENT (x)"#),
            None
        );
        assert_eq!(
            reader.read(r#"7 fsync(5<\x2f\x65>) = 0"#),
            None,
            "elsewhere"
        );
    }
}
