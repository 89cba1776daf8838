//! Who is not let in, and what is said about it.

use crate::certificates::Authority;
use crate::mesh::{Kind, LONG, LOOPBACK, NAME, try_mesh};
use crate::raw::{Answer, Claim, dial, hello};
use dg_comm::Communicator;
use dg_net::plane::{Address, EpochKey, Listener, Member, Options, Refusal, Rendezvous, SetUpError, Sockets};
use std::io::Write;
use std::time::{Duration, Instant};

const KEY: [u8; 32] = [5; 32];
const EPOCH: u64 = 7;

/// Rank 0 of two, and what strangers say to it while it waits.
fn listening(
    options: Options,
    strangers: impl FnOnce(&Address, &dyn Fn() -> Result<Sockets, SetUpError>),
) -> Result<Sockets, SetUpError> {
    let listener = Listener::abstract_unix().unwrap();
    let address = listener.address().clone();
    let members = vec![Member::at(address.clone()), Member { host: String::new(), addresses: Vec::new() }];
    let of = |me, key| Rendezvous { epoch: EPOCH, key: EpochKey::new(key), members: members.clone(), me };
    std::thread::scope(|scope| {
        let zero = of(0, KEY);
        let waiting = scope.spawn(move || zero.connect(vec![listener], options));
        strangers(&address, &|| of(1, KEY).connect(Vec::new(), Options::default()));
        waiting.join().unwrap()
    })
}

#[test]
fn strangers_are_refused_and_named_and_the_right_rank_still_comes() {
    let good = || Claim::good(1, 2, EPOCH, KEY);
    let wrong = [
        (Claim { version: 2, ..good() }, 1, Refusal::Version, None),
        (Claim { epoch: EPOCH - 1, ..good() }, 2, Refusal::Epoch, Some(1)),
        (Claim { ranks: 3, ..good() }, 3, Refusal::Size, Some(1)),
        (Claim { from: 0, ..good() }, 4, Refusal::Rank, Some(0)),
        (Claim { from: 2, ..good() }, 4, Refusal::Rank, Some(2)),
        (Claim { to: 1, ..good() }, 4, Refusal::Rank, Some(1)),
        (Claim { in_flight_max: 1, ..good() }, 5, Refusal::Limits, Some(1)),
        (Claim { key: [6; 32], ..good() }, 6, Refusal::Key, Some(1)),
    ];
    let mut peer = None;
    let rank = listening(Options::default(), |address, connect| {
        for (claim, code, ..) in &wrong {
            let answer = hello(address, claim);
            assert!(matches!(answer, Answer::Refused(c) if c == *code), "{claim:?}: {answer:?}");
        }
        assert!(matches!(hello(address, &Claim { magic: *b"GET / HT", ..good() }), Answer::Closed));
        peer = Some(connect().unwrap());
    });
    let rank = rank.unwrap();
    let refused: Vec<_> = rank.refused().iter().map(|refused| (refused.why.clone(), refused.rank)).collect();
    let mut expected: Vec<_> = wrong.iter().map(|(.., why, rank)| (why.clone(), *rank)).collect();
    expected.push((Refusal::Garbage, None));
    assert_eq!(refused, expected);
    rank.check().unwrap();
}

#[test]
fn a_rank_is_let_in_once() {
    let listener = Listener::abstract_unix().unwrap();
    let address = listener.address().clone();
    let member = || Member::at(address.clone());
    let members = vec![member(), member(), member()];
    let rendezvous = Rendezvous { epoch: EPOCH, key: EpochKey::new(KEY), members, me: 0 };
    std::thread::scope(|scope| {
        let waiting = scope.spawn(move || rendezvous.connect(vec![listener], Options::default()));
        let one = hello(&address, &Claim::good(1, 3, EPOCH, KEY));
        assert!(matches!(one, Answer::Accepted(_)), "{one:?}");
        let again = hello(&address, &Claim::good(1, 3, EPOCH, KEY));
        assert!(matches!(again, Answer::Refused(7)), "{again:?}");
        let two = hello(&address, &Claim::good(2, 3, EPOCH, KEY));
        assert!(matches!(two, Answer::Accepted(_)), "{two:?}");
        let rank = waiting.join().unwrap().unwrap();
        assert_eq!((rank.refused()[0].rank, &rank.refused()[0].why), (Some(1), &Refusal::Taken));
    });
}

/// Silence takes a hello's time, drops take the rendezvous', and neither holds up the rank that is meant.
#[test]
fn silence_and_drips_end_at_their_deadlines() {
    let options = || Options {
        set_up_max: Duration::from_millis(600),
        hello_max: Duration::from_millis(150),
        ..Options::default()
    };
    let begin = Instant::now();
    let mut kept = Vec::new();
    let error = listening(options(), |address, _| {
        kept.push(dial(address));
        let mut drip = dial(address);
        for byte in b"dgplane\n\x01\0\0\0" {
            let _ = drip.write_all(&[*byte]);
            std::thread::sleep(Duration::from_millis(25));
        }
        kept.push(drip);
    });
    let Err(SetUpError::Deadline { missing, refused, waited }) = error else { panic!("rank 1 never came") };
    assert!(waited >= Duration::from_millis(600) && begin.elapsed() < LONG, "{waited:?}");
    assert_eq!((missing.len(), missing[0].rank.rank, &*missing[0].last), (1, 1, "it has not come"));
    assert_eq!(refused.iter().map(|refused| &refused.why).collect::<Vec<_>>(), [&Refusal::Silent; 2]);

    // A stranger that says nothing is no reason to wait once everybody is here.
    let patient = Options { hello_max: LONG, ..Options::default() };
    let begin = Instant::now();
    let mut peer = None;
    listening(patient, |address, connect| {
        kept.push(dial(address));
        peer = Some(connect().unwrap());
    })
    .unwrap();
    assert!(begin.elapsed() < LONG / 4, "{:?}", begin.elapsed());
}

#[test]
fn the_rank_that_connects_says_why_it_was_not_let_in() {
    let other = |epoch, key, size| {
        move |members: &[Member]| {
            let mut members = members.to_vec();
            members.resize(size, members[0].clone());
            let rendezvous = Rendezvous { epoch, key: EpochKey::new(key), members, me: 1 };
            rendezvous.connect(Vec::new(), Options::default()).err().unwrap()
        }
    };
    let listener = Listener::abstract_unix().unwrap();
    let members = vec![Member::at(listener.address().clone()); 2];
    let rendezvous = Rendezvous { epoch: EPOCH, key: EpochKey::new(KEY), members: members.clone(), me: 0 };
    std::thread::scope(|scope| {
        let options = Options { set_up_max: Duration::from_secs(2), ..Options::default() };
        let waiting = scope.spawn(move || rendezvous.connect(vec![listener], options));
        let error = other(EPOCH + 1, KEY, 2)(&members);
        assert!(
            matches!(&error, SetUpError::Refused { peer, why: Refusal::Epoch } if peer.rank == 0),
            "{error}"
        );
        let error = other(EPOCH, KEY, 3)(&members);
        assert!(matches!(&error, SetUpError::Refused { why: Refusal::Size, .. }), "{error}");
        let error = other(EPOCH, [1; 32], 2)(&members);
        assert!(matches!(&error, SetUpError::Untrusted { why: Refusal::Key, .. }), "{error}");
        let error = waiting.join().unwrap().err().unwrap().to_string();
        assert!(error.contains("rank 1 is missing (it has not come)"), "{error}");
        assert!(error.contains("another epoch") && error.contains("another number of ranks"), "{error}");
    });
}

#[test]
fn certificates_are_asked_for_on_both_sides() {
    let (ours, theirs) = (Authority::new(), Authority::new());
    let cases = [
        // Rank 0 listens. The one that connects has no certificate, or one that rank 0 does not know.
        (ours.tls(NAME), ours.careless(NAME)),
        (ours.tls(NAME), theirs.tls(NAME)),
        // Rank 0's is for another name, or asks nobody.
        (ours.tls("another.dg-cluster"), ours.tls(NAME)),
        (ours.careless(NAME), ours.tls(NAME)),
    ];
    for (i, (zero, one)) in cases.into_iter().enumerate() {
        let options = |me, options| {
            let tls = Some(if me == 0 { zero.clone() } else { one.clone() });
            Options { tls, set_up_max: Duration::from_millis(700), ..options }
        };
        let mut ranks = try_mesh(&Kind::tls(), 2, options).into_iter();
        let (zero, one) = (ranks.next().unwrap().err().unwrap(), ranks.next().unwrap().err().unwrap());
        let SetUpError::Deadline { refused, .. } = &zero else { panic!("case {i}: {zero}") };
        let certificate = |refused: &dg_net::plane::Refused| matches!(refused.why, Refusal::Certificate(_));
        assert!(refused.iter().any(certificate), "case {i}: {zero}");
        // Of the last one it learns only that it is not let in.
        let told = matches!(one, SetUpError::Untrusted { why: Refusal::Certificate(_), .. });
        assert!(told || i == 3, "case {i}: {one}");
    }
}

#[test]
fn what_cannot_work_is_refused_at_once() {
    let outside = "192.0.2.1:7000".parse().unwrap();
    assert!(matches!(Listener::tcp(outside), Err(SetUpError::Invalid(_))));
    let connect = |members: Vec<Member>, me, options| {
        let rendezvous = Rendezvous { epoch: 1, key: EpochKey::generate(), members, me };
        rendezvous.connect(Vec::new(), options).err().unwrap().to_string()
    };
    let tcp = |address| Member::at(Address::Tcp(address));
    let error = connect(vec![tcp(outside); 2], 1, Options::default());
    assert!(error.contains("192.0.2.1:7000 is not on the loopback device"), "{error}");
    let tls = Member::at(Address::Tls { address: outside, name: NAME.into() });
    let error = connect(vec![tls; 2], 1, Options::default());
    assert!(error.contains("needs certificates"), "{error}");
    let far = Member { host: "far".into(), addresses: vec![Address::Tcp(LOOPBACK)] };
    let error = connect(vec![tcp(LOOPBACK), far.clone()], 1, Options::default());
    assert!(error.contains("rank 0 has no address that rank 1 can reach"), "{error}");
    let error = connect(vec![far; 2], 2, Options::default());
    assert!(error.contains("rank 2 of 2"), "{error}");
    let names = Options { names: vec!["alone".into()], ..Options::default() };
    assert!(connect(vec![tcp(LOOPBACK); 2], 0, names).contains("1 names for 2 ranks"));
    let long = std::env::temp_dir().join("x".repeat(120));
    std::fs::create_dir_all(&long).unwrap();
    let error = Listener::unix(&long).err().unwrap().to_string();
    std::fs::remove_dir(&long).unwrap();
    assert!(error.contains("cannot listen on unix:"), "{error}");
    assert!(format!("{:?}", EpochKey::new(KEY)).ends_with("(secret)"));
}
