//! The stub of the driver and of NCCL, loaded anew for each test.
#![allow(unsafe_code, reason = "the stub is a C library")]

use dg_comm::conformance::Ranks;
use dg_comm::{Communicator, InProcess};
use dg_nccl::{Context, Driver, Library, Nccl, Options};
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// A copy of the stub: what one test does to it, no other sees.
pub(crate) struct Stub {
    folder: tempfile::TempDir,
    library: libloading::Library,
}

/// How the stub is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Counts {
    pub(crate) communicators: i64,
    pub(crate) allocated: i64,
    pub(crate) wrong: i64,
    pub(crate) groups: i64,
    pub(crate) calls: i64,
    pub(crate) ended: i64,
}

/// `cargo test` builds examples beside tests.
fn built() -> PathBuf {
    let test = std::env::current_exe().expect("this test");
    let profile = test.parent().and_then(Path::parent).expect("target/PROFILE/deps");
    let path = profile.join("examples/libnccl_stub.so");
    assert!(path.is_file(), "{} is not there: run `cargo test -p dg-nccl`, which builds it", path.display());
    path
}

impl Stub {
    pub(crate) fn new() -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        // A link would be the same library for the loader.
        let path = folder.path().join("libstub.so");
        std::fs::copy(built(), &path).expect("a copy");
        // SAFETY: it is ours, and has no initialisers.
        let library = unsafe { libloading::Library::new(&path) }.expect("the stub loads");
        Self { folder, library }
    }

    pub(crate) fn path(&self) -> PathBuf {
        self.folder.path().join("libstub.so")
    }

    pub(crate) fn nccl(&self) -> Library {
        Library::load_from(&[self.path()]).expect("the stub is NCCL")
    }

    pub(crate) fn context(&self) -> Context {
        Driver::load_from(&[self.path()]).expect("the stub is a driver").context(0).expect("a device")
    }

    /// Ranks that are threads, each of which believes to have a GPU.
    pub(crate) fn ranks(&self, size: usize, options: Options) -> Vec<Nccl> {
        let inner = InProcess::group(size).into_iter().map(|comm| Arc::new(comm) as Arc<dyn Communicator>);
        self.over(inner.collect(), options)
    }

    /// The same over ranks that are joined already.
    pub(crate) fn over(&self, inner: Ranks, options: Options) -> Vec<Nccl> {
        let (library, context) = (self.nccl(), self.context());
        let wrap = |inner| Nccl::new(inner, library, &context, None, options).expect("a rank");
        inner.into_iter().map(wrap).collect()
    }

    fn call<A>(&self, name: &str, argument: A) {
        // SAFETY: the stub's functions take one number each.
        unsafe {
            let function = self.library.get::<unsafe extern "C" fn(A)>(name.as_bytes()).expect("it is there");
            function(argument);
        }
    }

    pub(crate) fn version(&self, version: i32) {
        self.call("stub_version", version);
    }

    pub(crate) fn fail_after(&self, sends: i64) {
        self.call("stub_fail_after", sends);
    }

    pub(crate) fn no_peer(&self, yes: bool) {
        self.call("stub_no_peer", yes);
    }

    /// Whether an abort of a communicator hangs.
    pub(crate) fn keep(&self, yes: bool) {
        self.call("stub_keep", yes);
    }

    pub(crate) fn memory(&self, bytes: i64) {
        self.call("stub_memory", bytes);
    }

    pub(crate) fn counts(&self) -> Counts {
        let mut all = [0_i64; 6];
        self.call("stub_counts", all.as_mut_ptr());
        let [communicators, allocated, wrong, groups, calls, ended] = all;
        Counts { communicators, allocated, wrong, groups, calls, ended }
    }
}
