//! How fast two processes exchange tensors: each sends and receives at the same time, as in a step of a ring.
//!
//! `cargo run --release -p dg-net --example plane_speed [MiB…]`

use dg_comm::{Block, BlockShape, Call, Class, Communicator, Tag};
use dg_net::plane::{Address, EpochKey, Listener, Member, Options, Rendezvous, Sockets, Tls};
use rcgen::{CertificateParams, KeyPair};
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::WebPkiClientVerifier;
use rustls::version::TLS13;
use rustls::{ClientConfig, RootCertStore, ServerConfig};
use std::error::Error;
use std::io::{BufRead, BufReader, Write};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

type Result<T> = std::result::Result<T, Box<dyn Error>>;

fn main() -> Result<()> {
    let mut args: Vec<String> = std::env::args().skip(1).collect();
    if args.first().is_some_and(|arg| arg == "--rank-1") {
        return one(&args[1..]);
    }
    if args.is_empty() {
        args = vec!["1".to_owned(), "8".to_owned(), "32".to_owned()];
    }
    println!("{:>9} {:>6} {:>10} {:>22}", "stream", "MiB", "ms", "GB/s per direction");
    ["unix", "tcp", "tls"].iter().try_for_each(|kind| zero(kind, &args))
}

/// Rank 0, which starts the other and tells what it has measured.
fn zero(kind: &str, sizes: &[String]) -> Result<()> {
    let loopback = "127.0.0.1:0".parse()?;
    let listener = match kind {
        "unix" => Listener::abstract_unix()?,
        "tcp" => Listener::tcp(loopback)?,
        _ => Listener::tls(loopback, NAME)?,
    };
    let mut command = Command::new(std::env::current_exe()?);
    command.args(["--rank-1", kind]).args(sizes).stdin(Stdio::piped());
    let mut child = command.spawn()?;
    let (tls, certificate, key) = certificates()?;
    let address = match listener.address() {
        Address::Abstract(name) => name.clone(),
        Address::Tcp(address) | Address::Tls { address, .. } => address.to_string(),
        Address::Unix(_) => return Err("not used here".into()),
    };
    let mut input = child.stdin.take().ok_or("no input")?;
    // A key and a certificate of this run only; a real rank gets its own.
    writeln!(input, "{address}\n{}\n{}", hex(&certificate), hex(&key))?;
    let comm = connect(listener.address().clone(), 0, vec![listener], tls)?;
    for size in sizes {
        let (bytes, median) = measure(&comm, size)?;
        let speed = bytes as f64 / median.as_secs_f64() / 1e9;
        println!("{kind:>9} {size:>6} {:>10.2} {speed:>22.2}", median.as_secs_f64() * 1e3);
    }
    comm.finish()?;
    child.wait()?;
    Ok(())
}

/// Rank 1, a process of its own.
fn one(args: &[String]) -> Result<()> {
    let (kind, sizes) = args.split_first().ok_or("no kind")?;
    let mut lines = BufReader::new(std::io::stdin()).lines();
    let mut line = || lines.next().ok_or("no line")?.map_err(Box::<dyn Error>::from);
    let (address, certificate, key) = (line()?, unhex(&line()?)?, unhex(&line()?)?);
    let address = match kind.as_str() {
        "unix" => Address::Abstract(address),
        "tcp" => Address::Tcp(address.parse()?),
        _ => Address::Tls { address: address.parse()?, name: NAME.to_owned() },
    };
    let comm = connect(address, 1, Vec::new(), configs(&certificate, &key)?)?;
    sizes.iter().try_for_each(|size| measure(&comm, size).map(drop))?;
    Ok(comm.finish()?)
}

fn connect(address: Address, me: usize, listeners: Vec<Listener>, tls: Tls) -> Result<Sockets> {
    let members = vec![Member::at(address); 2];
    let rendezvous = Rendezvous { epoch: 1, key: EpochKey::new([1; 32]), members, me };
    Ok(rendezvous.connect(listeners, Options { tls: Some(tls), ..Options::default() })?)
}

/// Bytes each way and the median time of one exchange.
fn measure(comm: &Sockets, mebibytes: &str) -> Result<(usize, Duration)> {
    let bytes = mebibytes.parse::<usize>()? << 20;
    let (peer, shape) = (1 - comm.rank(), BlockShape::f32(bytes / 4));
    let block = Block::from_f32(vec![1.0; shape.len]);
    let rounds = ((400 << 20) / bytes.max(1)).clamp(7, 100);
    let mut times = Vec::new();
    for round in 0..rounds + 2 {
        let call = Call::within(Duration::from_secs(60), Class::RingKv, Tag::new(1).step(round as u32));
        let begin = Instant::now();
        comm.exchange(&call, vec![(peer, block.clone())], &[(peer, shape)])?;
        times.push(begin.elapsed());
    }
    // Without the first two, which warm up.
    let mut times = times.split_off(2);
    times.sort();
    Ok((bytes, times[times.len() / 2]))
}

fn certificates() -> Result<(Tls, Vec<u8>, Vec<u8>)> {
    let key = KeyPair::generate()?;
    let certificate = CertificateParams::new(vec![NAME.to_owned()])?.self_signed(&key)?;
    let (certificate, key) = (certificate.der().to_vec(), key.serialize_der());
    Ok((configs(&certificate, &key)?, certificate, key))
}

fn configs(certificate: &[u8], key: &[u8]) -> Result<Tls> {
    let certificate = CertificateDer::from(certificate.to_vec());
    let key = PrivateKeyDer::Pkcs8(key.to_vec().into());
    let mut roots = RootCertStore::empty();
    roots.add(certificate.clone())?;
    let (roots, provider) = (Arc::new(roots), Arc::new(rustls::crypto::aws_lc_rs::default_provider()));
    let verifier = WebPkiClientVerifier::builder_with_provider(roots.clone(), provider.clone()).build()?;
    let server = ServerConfig::builder_with_provider(provider.clone())
        .with_protocol_versions(&[&TLS13])?
        .with_client_cert_verifier(verifier)
        .with_single_cert(vec![certificate.clone()], key.clone_key())?;
    let client = ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&TLS13])?
        .with_root_certificates(roots)
        .with_client_auth_cert(vec![certificate], key)?;
    Ok(Tls { server: Arc::new(server), client: Arc::new(client) })
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn unhex(text: &str) -> Result<Vec<u8>> {
    let digits = |i| text.get(i..i + 2).ok_or("half a byte");
    (0..text.len()).step_by(2).map(|i| Ok(u8::from_str_radix(digits(i)?, 16)?)).collect()
}

const NAME: &str = "node.dg-cluster";
