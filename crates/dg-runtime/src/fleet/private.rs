//! A cluster for one program: its head is in this process, its ranks are processes of this host, and it goes when the
//! program does.

use super::client::{AskError, CLIENT, HeadClient};
use super::head::{Head, HeadArgs, HeadError};
use dg_config::ClusterFile;
use dg_net::identity::{IdentityError, Name, Role, State};
use std::hash::{BuildHasher, Hasher, RandomState};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant, SystemTime};

/// What a private cluster is made of.
#[derive(Clone, Debug)]
pub struct PrivateArgs {
    /// Ranks.
    pub ranks: u32,
    /// Threads of each.
    pub threads: u32,
    /// The model, by a name that [`OpenModel`](super::OpenModel) of the ranks knows.
    pub model: String,
    /// The program that is an agent (`PROGRAM agent --name … --head … --state_dir …`) and a rank (`PROGRAM rank`).
    pub program: PathBuf,
}

/// Why there is no private cluster.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum PrivateError {
    /// Its description, which is made here.
    #[error(transparent)]
    File(#[from] dg_config::FileError),
    /// Its folder.
    #[error("`{}`: {why}", path.display())]
    Folder {
        /// Which.
        path: PathBuf,
        /// What is wrong.
        why: std::io::Error,
    },
    /// Its certificates.
    #[error(transparent)]
    Identity(#[from] IdentityError),
    /// Its head.
    #[error(transparent)]
    Head(#[from] HeadError),
    /// Its head does not answer.
    #[error(transparent)]
    Ask(#[from] AskError),
    /// Its ranks do not start.
    #[error("{ready} of {ranks} ranks are ready after {waited:.0?}{why}")]
    Late {
        /// Ranks that are.
        ready: usize,
        /// Ranks that should be.
        ranks: u32,
        /// How long they had.
        waited: Duration,
        /// What is known about it.
        why: String,
    },
}

/// A cluster of this program's own.
pub struct Private {
    head: Head,
    // Removed after the head is told to end.
    folder: Folder,
}

impl Private {
    /// Starts it, and connects to it. Needs a tokio runtime with several threads.
    ///
    /// # Errors
    /// [`PrivateError`].
    pub async fn start(args: &PrivateArgs) -> Result<(Self, HeadClient), PrivateError> {
        let folder = Folder::create()?;
        let state = State::open(&folder.0)?;
        let now = SystemTime::now();
        let ca = state.init_ca(true, now)?;
        let name = |text: &str| Name::parse(text).map_err(IdentityError::from);
        state.issue(&ca, &Name::head(), Role::Head, true, now)?;
        state.issue(&ca, &name(NODE)?, Role::Node, true, now)?;
        state.issue(&ca, &name(CLIENT)?, Role::Client, true, now)?;
        let head = HeadArgs {
            file: file(args)?,
            state_dir: folder.0.clone(),
            program: args.program.clone(),
            model: Some(args.model.clone()),
            desk: None,
        };
        let head = Head::start(head).await?;
        let private = Self { head, folder };
        let address = private.head.address().to_string();
        let options = dg_net::endpoint::Options::dialer();
        let client = HeadClient::connect(&address, &private.folder.0, CLIENT, options).await?;
        private.wait(&client, args.ranks).await?;
        Ok((private, client))
    }

    async fn wait(&self, client: &HeadClient, ranks: u32) -> Result<(), PrivateError> {
        let begin = Instant::now();
        loop {
            let status = client.status().await?;
            let ready = status.ranks.iter().filter(|rank| rank.state == "idle").count();
            if u32::try_from(ready) == Ok(ranks) {
                return Ok(());
            }
            let waited = begin.elapsed();
            if waited > READY_MAX {
                let log = std::fs::read_to_string(self.folder.0.join("log").join(format!("{NODE}.log")));
                let last = log.ok().and_then(|log| log.lines().last().map(str::to_owned));
                let why = last.map_or_else(String::new, |line| format!("; the agent says: {line}"));
                return Err(PrivateError::Late { ready, ranks, waited, why });
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    /// Ends its processes.
    pub async fn shut_down(mut self) {
        self.head.shut_down();
        let _ = self.head.ended().await;
    }
}

impl Drop for Private {
    fn drop(&mut self) {
        self.head.shut_down();
    }
}

/// A folder for keys that nobody else has or could have made, removed when this is dropped.
struct Folder(PathBuf);

impl Folder {
    fn create() -> Result<Self, PrivateError> {
        use std::os::unix::fs::DirBuilderExt;
        let mut last = PathBuf::new();
        for _ in 0..TRIES {
            let random = RandomState::new().build_hasher().finish();
            let path = std::env::temp_dir().join(format!("dg-private-{}-{random:016x}", std::process::id()));
            // Not one that is there already: somebody else's, as it may be.
            match std::fs::DirBuilder::new().mode(0o700).create(&path) {
                Ok(()) => return Ok(Self(path)),
                Err(why) if why.kind() == std::io::ErrorKind::AlreadyExists => last = path,
                Err(why) => return Err(PrivateError::Folder { path, why }),
            }
        }
        Err(PrivateError::Folder { path: last, why: std::io::ErrorKind::AlreadyExists.into() })
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

fn file(args: &PrivateArgs) -> Result<ClusterFile, PrivateError> {
    let text = format!(
        "[cluster]\nname = \"private\"\nlisten = \"127.0.0.1:1\"\n[failure]\norphan_exit = \"6s\"\n\
         [[node]]\nname = \"{NODE}\"\nlocal = true\nranks = {}\ncpu_threads = {}\n",
        args.ranks, args.threads
    );
    let mut file = ClusterFile::read(Path::new("private"), &text)?;
    // Any port.
    file.cluster.listen.port = Some(0);
    Ok(file)
}

/// Names of folders that are tried.
const TRIES: usize = 16;
const NODE: &str = "local";
/// How long processes have to start: they load nothing yet.
const READY_MAX: Duration = Duration::from_secs(30);

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn folders_are_new_and_go_with_their_owners() {
        let folders = [Folder::create().unwrap(), Folder::create().unwrap()];
        assert_ne!(folders[0].0, folders[1].0);
        let paths = folders.each_ref().map(|folder| folder.0.clone());
        for path in &paths {
            assert_eq!(path.metadata().unwrap().permissions().mode() & 0o777, 0o700);
            std::fs::write(path.join("ca.key"), "secret").unwrap();
        }
        drop(folders);
        assert!(paths.iter().all(|path| !path.exists()));
    }

    #[test]
    fn a_cluster_that_does_not_start_leaves_no_key_behind() {
        let own = || {
            let start = format!("dg-private-{}-", std::process::id());
            let all = std::fs::read_dir(std::env::temp_dir()).unwrap().flatten();
            all.filter(|entry| entry.file_name().to_string_lossy().starts_with(&start)).count()
        };
        let args = PrivateArgs { ranks: 0, threads: 1, model: "demo".into(), program: "/bin/false".into() };
        let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
        assert!(matches!(runtime.block_on(Private::start(&args)), Err(PrivateError::File(_))));
        // The other test has two for a moment.
        let until = Instant::now() + Duration::from_secs(5);
        while own() > 0 {
            assert!(Instant::now() < until, "its folder is left");
            std::thread::sleep(Duration::from_millis(10));
        }
    }
}
