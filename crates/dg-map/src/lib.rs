//! Memory from the system: files mapped as shared byte buffers, and how the heap treats large blocks.
//!
//! The one place outside the kernels that needs `unsafe`: a mapping is only as constant as the file behind it.
//!
//! # Layout
//! [`MappedFile`], [`keep_large_blocks`] and [`give_back`] are all there is.
//!
//! ```
//! # let folder = std::env::temp_dir();
//! # let path = folder.join(format!("dg-map-doc-{}", std::process::id()));
//! std::fs::write(&path, b"weights")?;
//! let file = dg_map::MappedFile::open(&path)?;
//! assert_eq!(&file.bytes()[..], b"weights");
//! # std::fs::remove_file(&path)?;
//! # std::io::Result::Ok(())
//! ```

use std::fs::{File, Metadata};
use std::io;
use std::ops::Range;
use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;
use memmap2::{Mmap, UncheckedAdvice};

/// A file mapped read-only. Clones and the buffers made from it share one mapping; the last one unmaps it.
#[derive(Clone, Debug)]
pub struct MappedFile {
    bytes: Bytes,
    /// None for an empty file.
    map: Option<Arc<Mmap>>,
    file: Arc<File>,
}

impl MappedFile {
    /// Maps the whole of `path`. Pages are read when they are first touched. An empty file gives an empty buffer.
    ///
    /// The file must stay as it is while it is mapped. One that is overwritten in place changes the bytes seen
    /// here; one that is cut short ends the process with SIGBUS at the next touch of a missing page. Replacing a
    /// file by rename, as this workspace and the hub's cache do, is harmless: the mapping keeps the old file.
    pub fn open(path: impl AsRef<Path>) -> io::Result<Self> {
        let path = path.as_ref();
        // Before it is opened: a pipe that nobody writes to would keep `File::open` waiting for ever.
        require_regular(&std::fs::metadata(path)?)?;
        let file = File::open(path)?;
        // Once more, of what was opened: another file may have taken its place.
        let metadata = file.metadata()?;
        require_regular(&metadata)?;
        // A mapping of length zero is an error on Linux.
        if metadata.len() == 0 {
            return Ok(Self { bytes: Bytes::new(), map: None, file: Arc::new(file) });
        }
        let map = Arc::new(map(&file)?);
        let bytes = Bytes::from_owner(Owner(map.clone()));
        Ok(Self { bytes, map: Some(map), file: Arc::new(file) })
    }

    /// The number of bytes in the file when it was mapped.
    pub fn len(&self) -> usize {
        self.bytes.len()
    }

    /// Whether the file is empty.
    pub fn is_empty(&self) -> bool {
        self.bytes.is_empty()
    }

    /// The file's bytes, without a copy. The mapping lives as long as any buffer cut from it.
    pub fn bytes(&self) -> Bytes {
        self.bytes.clone()
    }

    /// Whether `other` is a clone of this one.
    pub fn is_same(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.file, &other.file)
    }

    /// Where it is mapped.
    pub fn address(&self) -> usize {
        self.bytes.as_ptr().addr()
    }

    /// Takes the pages that lie wholly in `range` (in bytes from the start of the file) out of this process's
    /// memory. Buffers stay valid: a page that is touched again comes from the file, or from the system's cache
    /// of it. A range that goes beyond the file ends with it; pages count as 64 KiB, whatever they are.
    pub fn release(&self, range: Range<usize>) -> io::Result<()> {
        let (Some(map), Some(pages)) = (&self.map, self.inner_pages(range)) else { return Ok(()) };
        drop_pages(map, pages)
    }

    /// [`release`](Self::release), and takes the pages out of the system's cache as well, unless another process has
    /// them mapped: what is touched again is read from the disk.
    pub fn forget(&self, range: Range<usize>) -> io::Result<()> {
        let Some(pages) = self.inner_pages(range) else { return Ok(()) };
        self.release(pages.clone())?;
        uncache(&self.file, pages)
    }

    /// Brings the pages that hold bytes of `range` into memory and into this process, and returns when they are there.
    /// Several requests to the disk are under way at a time, where single touches would wait for each.
    ///
    /// # Errors
    /// If the file cannot be read. A system without `MADV_POPULATE_READ` (Linux before 5.14) is only asked to have
    /// them ready soon.
    pub fn read_ahead(&self, range: Range<usize>) -> io::Result<()> {
        let Some(map) = &self.map else { return Ok(()) };
        let end = range.end.min(map.len());
        let mut start = range.start.min(end) / PAGE_MAX * PAGE_MAX;
        let announce = |start: usize| {
            let stop = start.saturating_add(AHEAD).min(end);
            (start..stop)
                .step_by(REQUEST)
                .try_for_each(|at| map.advise_range(memmap2::Advice::WillNeed, at, REQUEST.min(stop - at)))
        };
        announce(start)?;
        while start < end {
            let len = (end - start).min(AHEAD);
            announce(start + len)?;
            populate(map, start, len)?;
            start += len;
        }
        Ok(())
    }

    /// The pages that lie wholly in `range`.
    fn inner_pages(&self, range: Range<usize>) -> Option<Range<usize>> {
        let end = range.end.min(self.len()) / PAGE_MAX * PAGE_MAX;
        let start = range.start.min(end).next_multiple_of(PAGE_MAX);
        (start < end).then_some(start..end)
    }
}

/// Bytes that [`MappedFile::read_ahead`] asks the disk for at a time, twice.
const AHEAD: usize = 16 << 20;
/// Bytes of one request: Linux cuts a longer one to what it would itself read ahead, which is this at least unless
/// somebody has set `read_ahead_kb` below it.
const REQUEST: usize = 128 << 10;

#[cfg(target_os = "linux")]
fn uncache(file: &File, pages: Range<usize>) -> io::Result<()> {
    let length = std::num::NonZeroU64::new(pages.len() as u64);
    Ok(rustix::fs::fadvise(file, pages.start as u64, length, rustix::fs::Advice::DontNeed)?)
}

/// Here the system decides what it keeps.
#[cfg(not(target_os = "linux"))]
fn uncache(_: &File, _: Range<usize>) -> io::Result<()> {
    Ok(())
}

#[cfg(target_os = "linux")]
fn populate(map: &Mmap, start: usize, len: usize) -> io::Result<()> {
    match map.advise_range(memmap2::Advice::PopulateRead, start, len) {
        // an older system
        Err(error) if error.kind() == io::ErrorKind::InvalidInput => Ok(()),
        done => done,
    }
}

/// Here pages come as they are touched.
#[cfg(not(target_os = "linux"))]
fn populate(_: &Mmap, _: usize, _: usize) -> io::Result<()> {
    Ok(())
}

/// Tells the heap to keep freed blocks, however large, for the next ones; false if it was not done. For programs
/// that compute, before they start a thread.
///
/// As it is, glibc gives every block above 32 MiB (at first: 128 KiB) back to the system at once. Activations are
/// of that size and come and go in every layer; each time the system hands out zeroed pages, one fault each: a
/// tenth of a run's CPU time. A kept block is cleared by the one thread that asks for it, though, and fresh pages
/// by all threads that write them: nothing is done where more than [`PROCESSORS_MAX`] can.
pub fn keep_large_blocks() -> bool {
    let few = std::thread::available_parallelism().is_ok_and(|n| n.get() <= PROCESSORS_MAX);
    few && keep_blocks()
}

/// Gives memory that nobody uses any more back to the system, for processes that live long and have seen a rush: the
/// heap keeps what lies between blocks that are still in use. Whether there was any.
#[cfg(all(target_os = "linux", target_env = "gnu"))]
#[allow(unsafe_code)]
pub fn give_back() -> bool {
    // SAFETY: `malloc_trim` takes the allocator's own locks and touches no memory that is in use.
    unsafe { libc::malloc_trim(0) == 1 }
}

/// Here the heap does as it likes.
#[cfg(not(all(target_os = "linux", target_env = "gnu")))]
pub fn give_back() -> bool {
    false
}

/// Processors from which on fresh pages are cheaper than clearing old ones.
pub const PROCESSORS_MAX: usize = 4;

#[cfg(all(target_os = "linux", target_env = "gnu"))]
#[allow(unsafe_code)]
fn keep_blocks() -> bool {
    let set = |parameter: i32, value: i32| {
        // SAFETY: `mallopt` changes parameters of the allocator, under its own lock; these three are valid at any
        // time and concern no memory that is in use.
        unsafe { libc::mallopt(parameter, value) == 1 }
    };
    // blocks above 1 GiB are still mapped one by one; one heap for all threads, because those that threads have
    // of their own cannot hold blocks above 64 MiB
    set(libc::M_MMAP_THRESHOLD, 1 << 30) && set(libc::M_TRIM_THRESHOLD, i32::MAX) && set(libc::M_ARENA_MAX, 1)
}

#[cfg(not(all(target_os = "linux", target_env = "gnu")))]
fn keep_blocks() -> bool {
    false
}

/// What keeps the mapping alive behind a buffer.
struct Owner(Arc<Mmap>);

impl AsRef<[u8]> for Owner {
    fn as_ref(&self) -> &[u8] {
        &self.0
    }
}

fn require_regular(metadata: &Metadata) -> io::Result<()> {
    if metadata.is_file() {
        return Ok(());
    }
    Err(io::Error::new(io::ErrorKind::InvalidInput, "not a regular file"))
}

#[allow(unsafe_code)]
fn map(file: &File) -> io::Result<Mmap> {
    // SAFETY: a mapping is undefined behaviour if the file changes while it is mapped. It is opened and mapped
    // read-only here, this workspace never writes a model file in place, and `MappedFile::open` hands the rest
    // of the duty to its caller. A file that another process cuts short is a SIGBUS at the touch of a lost page,
    // which ends the process and reads no foreign memory.
    unsafe { Mmap::map(file) }
}

#[allow(unsafe_code)]
fn drop_pages(map: &Mmap, range: Range<usize>) -> io::Result<()> {
    // SAFETY: the danger of `DontNeed` is that written pages are lost. A file mapped read-only has none: the
    // addresses stay mapped, and a touched page is read from the file again, which does not change while it is
    // mapped (the duty that `MappedFile::open` hands to its caller).
    unsafe { map.unchecked_advise_range(UncheckedAdvice::DontNeed, range.start, range.len()) }
}

/// The largest page of any Linux; a multiple of all smaller ones.
const PAGE_MAX: usize = 64 << 10;

#[cfg(test)]
mod tests {
    use super::*;

    fn temp_file(name: &str, content: &[u8]) -> std::path::PathBuf {
        let path = std::env::temp_dir().join(format!("dg-map-{}-{name}", std::process::id()));
        std::fs::write(&path, content).expect("the temporary folder is writable");
        path
    }

    #[test]
    fn bytes_are_those_of_the_file_and_outlive_it() {
        let content: Vec<u8> = (0..100_000u32).map(|i| (i * 31 % 251) as u8).collect();
        let path = temp_file("content", &content);
        let file = MappedFile::open(&path).expect("it is there");
        let tail = file.bytes().slice(70_000..);
        assert_eq!(file.len(), content.len());
        drop(file);
        std::fs::remove_file(&path).expect("it is there");
        assert_eq!(&tail[..], &content[70_000..]);
    }

    #[test]
    fn buffers_share_one_mapping() {
        let path = temp_file("shared", b"0123456789");
        let file = MappedFile::open(&path).expect("it is there");
        let other = file.clone();
        assert_eq!(file.bytes().as_ptr(), other.bytes().as_ptr());
        drop(file);
        assert!(!other.bytes().is_empty());
        std::fs::remove_file(&path).expect("it is there");
    }

    #[test]
    fn an_empty_file_is_an_empty_buffer() {
        let path = temp_file("empty", b"");
        let file = MappedFile::open(&path).expect("it is there");
        assert!(file.is_empty());
        assert!(file.bytes().is_empty());
        std::fs::remove_file(&path).expect("it is there");
    }

    /// Bytes of a mapped file that this process holds in memory.
    fn resident(path: &Path) -> u64 {
        let maps = std::fs::read_to_string("/proc/self/smaps").expect("a Linux process");
        let mut lines = maps.lines().skip_while(|l| !l.ends_with(path.to_str().expect("ASCII")));
        let rss = lines.find_map(|l| l.strip_prefix("Rss:")).expect("it is mapped");
        rss.trim().trim_end_matches(" kB").parse::<u64>().expect("a number") << 10
    }

    #[test]
    fn released_pages_leave_and_come_back() {
        let content: Vec<u8> = (0..1u32 << 20).map(|i| (i * 31 % 251) as u8).collect();
        let path = temp_file("released", &content);
        let file = MappedFile::open(&path).expect("it is there");
        let bytes = file.bytes();
        assert_eq!(&bytes[..], &content[..]);
        assert_eq!(resident(&path), 1 << 20);
        file.release(1000..9 * (64 << 10) + 5).expect("it is mapped");
        let left = resident(&path);
        // eight of sixteen pages of the largest kind
        assert_eq!(left, 1 << 19);
        // nothing whole, nothing there, too much
        for range in [5..4000, 3 << 20..4 << 20, 1 << 19..usize::MAX] {
            file.release(range).expect("it is mapped");
        }
        assert_eq!(&bytes[..], &content[..]);
        std::fs::remove_file(&path).expect("it is there");
    }

    /// Bytes that this process has had read from a disk.
    fn read_bytes() -> u64 {
        let io = std::fs::read_to_string("/proc/self/io").expect("a Linux process");
        let line = io.lines().find_map(|line| line.strip_prefix("read_bytes: ")).expect("it is counted");
        line.parse().expect("a number")
    }

    #[test]
    fn pages_read_ahead_are_there_and_forgotten_ones_are_not() {
        let content: Vec<u8> = (0..(40u32 << 20) + 77).map(|i| (i * 31 % 251) as u8).collect();
        let path = temp_file("ahead", &content);
        File::open(&path).and_then(|file| file.sync_all()).expect("a disk");
        let file = MappedFile::open(&path).expect("it is there");
        file.read_ahead(0..usize::MAX).expect("it is mapped");
        assert_eq!(resident(&path), (content.len() as u64).next_multiple_of(4096));
        file.forget(0..20 << 20).expect("it is mapped");
        assert!(resident(&path) <= (20 << 20) + 4096, "{}", resident(&path));
        let before = read_bytes();
        file.read_ahead(100..20 << 20).expect("it is mapped");
        assert_eq!(&file.bytes()[..], &content[..]);
        let read = read_bytes() - before;
        match read {
            // a file system in memory
            0 => eprintln!("SKIPPED that forgotten pages are read again: {} has no disk", path.display()),
            // the program's own pages count, too
            n => assert!((20 << 20..30 << 20).contains(&n), "{n}"),
        }
        for range in [0..0, 50 << 20..60 << 20, usize::MAX..usize::MAX] {
            file.read_ahead(range.clone()).expect("nothing to read");
            file.forget(range).expect("nothing to forget");
        }
        std::fs::remove_file(&path).expect("it is there");
    }

    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    #[test]
    fn the_heap_works_whatever_it_was_told() {
        // an old glibc refuses
        let _ = keep_blocks();
        let held = vec![1u8; 200 << 20];
        assert!(held.iter().all(|x| *x == 1));
    }

    #[test]
    fn a_missing_file_and_a_folder_are_errors() {
        let missing = MappedFile::open("no/such/file").expect_err("it is missing");
        assert_eq!(missing.kind(), io::ErrorKind::NotFound);
        assert!(MappedFile::open(std::env::temp_dir()).is_err());
    }

    #[cfg(unix)]
    #[test]
    fn a_pipe_is_an_error_and_no_wait() {
        let path = std::env::temp_dir().join(format!("dg-map-{}-pipe", std::process::id()));
        match std::process::Command::new("mkfifo").arg(&path).status() {
            Ok(status) => assert!(status.success(), "mkfifo: {status}"),
            Err(error) => return eprintln!("SKIPPED a_pipe_is_an_error_and_no_wait: mkfifo: {error}"),
        }
        let error = MappedFile::open(&path).expect_err("it is a pipe");
        std::fs::remove_file(&path).expect("it is there");
        assert_eq!(error.kind(), io::ErrorKind::InvalidInput);
        assert!(error.to_string().contains("not a regular file"), "{error}");
    }
}
