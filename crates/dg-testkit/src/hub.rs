//! A model hub of one repository on this machine.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::thread::JoinHandle;
use std::time::Duration;

use crate::compare::sha256_hex;

/// One repository as the server tells of it. Change it at any time through [`HubServer::edit`].
#[derive(Clone, Debug, Default)]
pub struct Repository {
    /// `owner/name`.
    pub id: String,
    /// The commit that `main` and [`revisions`](Self::revisions) stand for.
    pub commit: String,
    /// Other names of the commit: branches and tags.
    pub revisions: Vec<String>,
    /// Files by path.
    pub files: BTreeMap<String, Vec<u8>>,
    /// Names that the listing has besides those of the files.
    pub extra_listing: Vec<String>,
    /// Status to answer every request with, if not to serve.
    pub deny_all: Option<u16>,
    /// Status to answer every request for a file with, if not to serve. The listing stays open.
    pub deny_files: Option<u16>,
    /// ETag to send for a file instead of its SHA-256.
    pub etags: BTreeMap<String, String>,
    /// Files whose next whole bodies end early: bytes to send, and how many times.
    pub cuts: BTreeMap<String, (usize, usize)>,
}

/// One request that the server saw.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Request {
    /// Path of the URL, as sent.
    pub path: String,
    /// The first and last byte asked for.
    pub range: Option<(usize, Option<usize>)>,
    /// The `Authorization` header.
    pub authorization: Option<String>,
}

/// The server: a thread that answers until it is dropped.
#[derive(Debug)]
pub struct HubServer {
    address: SocketAddr,
    shared: Arc<Shared>,
    acceptor: Option<JoinHandle<()>>,
}

#[derive(Debug, Default)]
struct Shared {
    repository: Mutex<Repository>,
    requests: Mutex<Vec<Request>>,
    stop: AtomicBool,
}

impl HubServer {
    /// Serves `repository` on a free port of this machine.
    pub fn start(repository: Repository) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("this machine has a loopback interface");
        let address = listener.local_addr().expect("it is bound");
        let shared = Arc::new(Shared { repository: Mutex::new(repository), ..Shared::default() });
        let acceptor = std::thread::spawn({
            let shared = Arc::clone(&shared);
            move || accept(&listener, &shared)
        });
        Self { address, shared, acceptor: Some(acceptor) }
    }

    /// The address to use as the hub's endpoint.
    pub fn endpoint(&self) -> String {
        format!("http://{}", self.address)
    }

    /// Changes what is served from now on.
    pub fn edit(&self, change: impl FnOnce(&mut Repository)) {
        change(&mut lock(&self.shared.repository));
    }

    /// Takes the requests seen so far.
    pub fn take_requests(&self) -> Vec<Request> {
        std::mem::take(&mut *lock(&self.shared.requests))
    }
}

impl Drop for HubServer {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::SeqCst);
        // Wakes the thread that waits for a connection.
        let _ = TcpStream::connect(self.address);
        if let Some(acceptor) = self.acceptor.take() {
            let _ = acceptor.join();
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().expect("no thread panics while it holds this")
}

fn accept(listener: &TcpListener, shared: &Arc<Shared>) {
    for stream in listener.incoming().flatten() {
        if shared.stop.load(Ordering::SeqCst) {
            return;
        }
        let shared = Arc::clone(shared);
        // A client that goes away in the middle is its own affair.
        std::thread::spawn(move || serve(&stream, &shared));
    }
}

fn serve(stream: &TcpStream, shared: &Shared) -> std::io::Result<()> {
    stream.set_read_timeout(Some(Duration::from_secs(30)))?;
    let Some(request) = read_request(stream)? else { return Ok(()) };
    lock(&shared.requests).push(request.clone());
    let reply = answer(&mut lock(&shared.repository), &request);
    let mut head = format!("HTTP/1.1 {} Reply\r\nConnection: close\r\n", reply.status);
    for (name, value) in &reply.headers {
        head.push_str(&format!("{name}: {value}\r\n"));
    }
    head.push_str(&format!("Content-Length: {}\r\n\r\n", reply.body.len()));
    let mut stream = stream;
    stream.write_all(head.as_bytes())?;
    stream.write_all(&reply.body[..reply.send.min(reply.body.len())])?;
    stream.flush()
}

fn read_request(stream: &TcpStream) -> std::io::Result<Option<Request>> {
    let mut reader = BufReader::new(stream);
    let mut line = String::new();
    reader.read_line(&mut line)?;
    let Some(path) = line.split(' ').nth(1).map(str::to_owned) else { return Ok(None) };
    let mut request = Request { path, range: None, authorization: None };
    loop {
        line.clear();
        if reader.read_line(&mut line)? == 0 || line.trim().is_empty() {
            return Ok(Some(request));
        }
        let Some((name, value)) = line.trim().split_once(": ") else { continue };
        match name.to_ascii_lowercase().as_str() {
            "range" => request.range = parse_range(value),
            "authorization" => request.authorization = Some(value.to_owned()),
            _ => {}
        }
    }
}

fn parse_range(value: &str) -> Option<(usize, Option<usize>)> {
    let (first, last) = value.strip_prefix("bytes=")?.split_once('-')?;
    Some((first.parse().ok()?, last.parse().ok()))
}

struct Reply {
    status: u16,
    headers: Vec<(&'static str, String)>,
    body: Vec<u8>,
    /// How many bytes of the body are sent before the connection closes.
    send: usize,
}

impl Reply {
    fn new(status: u16, headers: Vec<(&'static str, String)>, body: Vec<u8>) -> Self {
        let send = body.len();
        Self { status, headers, body, send }
    }

    fn error(status: u16) -> Self {
        Self::new(status, Vec::new(), b"{\"error\":\"as asked\"}".to_vec())
    }
}

fn answer(repository: &mut Repository, request: &Request) -> Reply {
    if let Some(status) = repository.deny_all {
        return Reply::error(status);
    }
    let api = format!("/api/models/{}/revision/", repository.id);
    let files = format!("/{}/resolve/", repository.id);
    if let Some(revision) = request.path.strip_prefix(&api) {
        return if repository.knows(revision) { listing(repository) } else { Reply::error(404) };
    }
    match request.path.strip_prefix(&files).and_then(|rest| rest.split_once('/')) {
        Some((revision, name)) if repository.knows(revision) => match repository.deny_files {
            Some(status) => Reply::error(status),
            None => file(repository, name, request.range),
        },
        _ => Reply::error(404),
    }
}

impl Repository {
    fn knows(&self, revision: &str) -> bool {
        let revision = revision.replace("%2F", "/");
        revision == "main" || revision == self.commit || self.revisions.contains(&revision)
    }
}

fn listing(repository: &Repository) -> Reply {
    let names = repository.files.keys().chain(&repository.extra_listing);
    let siblings: Vec<_> = names.map(|name| serde_json::json!({ "rfilename": name })).collect();
    let body = serde_json::json!({ "sha": repository.commit, "siblings": siblings }).to_string();
    Reply::new(200, vec![("Content-Type", "application/json".to_owned())], body.into_bytes())
}

fn file(repository: &mut Repository, name: &str, range: Option<(usize, Option<usize>)>) -> Reply {
    let Some(content) = repository.files.get(name) else { return Reply::error(404) };
    let (first, last) = range.unwrap_or((0, None));
    if first >= content.len() {
        return Reply::error(416);
    }
    let end = last.map_or(content.len(), |last| content.len().min(last + 1));
    let etag = repository.etags.get(name).cloned().unwrap_or_else(|| sha256_hex(content));
    let headers = vec![
        ("ETag", format!("\"{etag}\"")),
        ("X-Repo-Commit", repository.commit.clone()),
        ("Accept-Ranges", "bytes".to_owned()),
        ("Content-Range", format!("bytes {first}-{}/{}", end - 1, content.len())),
    ];
    let mut reply = Reply::new(206, headers, content[first..end].to_vec());
    // The first byte alone is how a client asks for the size; only bodies are cut.
    if last.is_none()
        && let Some((bytes, times)) = repository.cuts.get_mut(name)
        && *times > 0
    {
        *times -= 1;
        reply.send = *bytes;
    }
    reply
}
