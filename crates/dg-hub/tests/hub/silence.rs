//! A hub that accepts connections and says nothing.

use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::time::{Duration, Instant};

use super::{Hub, id};
use dg_core::ExitCode;
use dg_hub::{HubError, HubOptions, fetch};
use tempfile::TempDir;

/// A hub that passes requests on to another and says nothing to those whose head has all of `mute`, but for the
/// first `bytes` of the answer. Its connections stay open until the process ends.
fn muted(upstream: SocketAddr, mute: &'static [&'static str], bytes: u64) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").expect("this machine has a loopback interface");
    let endpoint = format!("http://{}", listener.local_addr().expect("it is bound"));
    std::thread::spawn(move || {
        for client in listener.incoming().flatten() {
            std::thread::spawn(move || pass_on(client, upstream, mute, bytes));
        }
    });
    endpoint
}

fn pass_on(mut client: TcpStream, upstream: SocketAddr, mute: &[&str], bytes: u64) -> std::io::Result<()> {
    let mut head = Vec::new();
    let mut byte = [0];
    while !head.ends_with(b"\r\n\r\n") && client.read(&mut byte)? == 1 {
        head.push(byte[0]);
    }
    let text = String::from_utf8_lossy(&head).to_lowercase();
    let silent = mute.iter().all(|word| text.contains(word));
    let mut server = TcpStream::connect(upstream)?;
    server.write_all(&head)?;
    std::io::copy(&mut server.take(if silent { bytes } else { u64::MAX }), &mut client)?;
    if silent {
        std::thread::sleep(Duration::from_secs(3600));
    }
    client.shutdown(Shutdown::Both)
}

#[test]
fn a_silent_server_is_unreachable_unless_the_cache_has_it() {
    let hub = Hub::start();
    let upstream = hub.server.endpoint()["http://".len()..].parse().expect("an address");
    // The listing, the size of a file, the beginning of its body, the middle of its body.
    let silences: [(&'static [&'static str], u64); 5] = [
        (&[], 0),
        (&["/api/models/"], 20),
        (&["diffusion_pytorch_model-00002", "bytes=0-0"], 0),
        (&["diffusion_pytorch_model-00002", "bytes=0-\r"], 0),
        (&["diffusion_pytorch_model-00002", "bytes=0-\r"], 9_000),
    ];
    for (mute, bytes) in silences {
        let empty = TempDir::new().expect("a temporary folder");
        let options = HubOptions {
            endpoint: Some(muted(upstream, mute, bytes)),
            cache_dir: Some(empty.path().to_owned()),
            stall: Some(STALL),
            ..HubOptions::default()
        };
        let begin = Instant::now();
        let error = fetch(&id(), &options, &()).expect_err("it says nothing");
        assert!(begin.elapsed() < Duration::from_secs(20), "{mute:?} {bytes}: {:?}", begin.elapsed());
        assert!(matches!(error, HubError::Unreachable { .. }), "{mute:?} {bytes}: {error}");
        assert_eq!(error.exit(), ExitCode::Unreachable);
        assert!(error.to_string().contains("nothing came for 400ms"), "{error}");
    }
    let folder = hub.fetch().expect("it is served");
    let options = HubOptions { endpoint: Some(muted(upstream, &[], 0)), stall: Some(STALL), ..hub.options() };
    assert_eq!(fetch(&id(), &options, &()).expect("the cache has it"), folder);
}

/// Far more than this machine needs for an answer, and little to wait for.
const STALL: Duration = Duration::from_millis(400);
