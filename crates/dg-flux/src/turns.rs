//! Layers whose weights lie in mapped files and take turns: while one computes, a thread reads those of the next, and
//! weights that memory has no room for leave once they are used.
//!
//! A loop over more weights than fit is the worst case of a cache that forgets what was used least recently: nothing
//! that it keeps is there when it is wanted. So the first layers stay, as many as fit, and only the others are read again
//! in each round.

use crate::watch::Watch;
use crate::weights::Pages;
use crate::{PassError, Unread};
use std::collections::BTreeMap;
use std::sync::mpsc::{self, Sender};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, OnceLock, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

/// Bytes of mapped weights from which on layers take turns even if all of them fit. Less than that is read before a
/// thread is worth it.
const BYTES_MIN: u64 = 1 << 30;
/// How often somebody who waits for weights looks whether the run is to stop.
const LOOK: Duration = Duration::from_millis(50);
/// Bytes between two tensors that are read with them: biases lie there.
const GAP_MAX: usize = 64 << 10;

/// The weights of layers that are used one after the other.
pub(crate) struct Turns {
    shared: Arc<Shared>,
    /// Whether the first layer follows the last.
    is_round: bool,
    bytes_min: u64,
    reader: OnceLock<Option<Reader>>,
}

struct Reader {
    orders: Sender<Order>,
    thread: JoinHandle<()>,
}

struct Shared {
    layers: Vec<Layer>,
    state: Mutex<State>,
    changed: Condvar,
}

struct Layer {
    pages: Vec<Pages>,
    bytes: u64,
}

struct State {
    standing: Vec<Standing>,
    /// Layers from the first on that stay; absent, layers do not take turns.
    kept: Option<usize>,
    /// Layers that cannot be read, and why. They are asked for anew in the next batch.
    unread: BTreeMap<usize, Unread>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Standing {
    Away,
    Asked,
    Here,
}

enum Order {
    Read(usize),
    Drop(usize),
}

impl Turns {
    /// For the pages of each layer, in the order of their use. In a round the first layer follows the last.
    pub(crate) fn new(layers: Vec<Vec<Pages>>, is_round: bool) -> Self {
        let layers: Vec<Layer> = layers.into_iter().map(Layer::new).collect();
        let state =
            State { standing: vec![Standing::Away; layers.len()], kept: None, unread: BTreeMap::new() };
        let shared = Arc::new(Shared { layers, state: Mutex::new(state), changed: Condvar::new() });
        Self { shared, is_round, bytes_min: BYTES_MIN, reader: OnceLock::new() }
    }

    /// Bytes of all layers.
    pub(crate) fn bytes(&self) -> u64 {
        self.shared.layers.iter().map(|layer| layer.bytes).sum()
    }

    /// From now on layers take turns, and the first of them stay, as many as `bytes` has room for beside the two that
    /// are used and read. Nothing happens for few weights that fit, or without `bytes`: then the system decides.
    pub(crate) fn keep(&self, bytes: Option<u64>) {
        let all = self.bytes();
        let bytes = bytes.filter(|bytes| all >= self.bytes_min || all > *bytes);
        let kept = bytes.map(|bytes| kept(&self.shared.layers, bytes));
        let mut state = self.shared.lock();
        for i in std::mem::take(&mut state.unread).into_keys() {
            state.standing[i] = Standing::Away;
        }
        let old = std::mem::replace(&mut state.kept, kept);
        let leave = match (old, kept) {
            (Some(_), Some(kept)) => kept,
            _ => self.shared.layers.len(),
        };
        let here: Vec<usize> =
            (leave..state.standing.len()).filter(|i| state.standing[*i] == Standing::Here).collect();
        here.into_iter().for_each(|i| self.drop_behind(&mut state, i));
        // The system may have taken them meanwhile; looking again costs little.
        let stay = state.standing.iter_mut().filter(|standing| **standing == Standing::Here);
        stay.for_each(|standing| *standing = Standing::Away);
    }

    /// Layer `i` is about to be used: has the next one read, and waits for its own.
    ///
    /// # Errors
    /// If `watch` stops the wait, or the layer cannot be read.
    pub(crate) fn begin(&self, i: usize, watch: &dyn Watch) -> Result<(), PassError> {
        let mut state = self.shared.lock();
        if state.kept.is_none() || !self.ask(&mut state, i) {
            return Ok(());
        }
        if let Some(next) = self.after(i) {
            self.ask(&mut state, next);
        }
        while state.standing[i] != Standing::Here && self.is_reading() {
            let waited = self.shared.changed.wait_timeout(state, LOOK);
            state = waited.unwrap_or_else(PoisonError::into_inner).0;
            watch.check()?;
            if let Some(why) = state.unread.get(&i) {
                return Err(why.clone().into());
            }
        }
        Ok(())
    }

    /// Layer `i` was used.
    pub(crate) fn end(&self, i: usize) {
        let mut state = self.shared.lock();
        let Some(kept) = state.kept else { return };
        if i >= kept {
            self.drop_behind(&mut state, i);
        } else if kept < self.shared.layers.len() && state.standing[i] == Standing::Here {
            // Memory is short, so the system may take what stays, too. The next round looks, one layer ahead.
            state.standing[i] = Standing::Away;
        }
    }

    /// Has layer `i` read, unless it is here; false if nobody can.
    fn ask(&self, state: &mut State, i: usize) -> bool {
        let Some(reader) = self.reader() else { return false };
        if state.standing[i] == Standing::Away {
            state.standing[i] = Standing::Asked;
            return reader.orders.send(Order::Read(i)).is_ok();
        }
        true
    }

    fn drop_behind(&self, state: &mut State, i: usize) {
        state.standing[i] = Standing::Away;
        if let Some(reader) = self.reader() {
            // if the thread is gone, the system decides
            let _ = reader.orders.send(Order::Drop(i));
        }
    }

    fn after(&self, i: usize) -> Option<usize> {
        match i + 1 {
            next if next < self.shared.layers.len() => Some(next),
            _ => (self.is_round && i > 0).then_some(0),
        }
    }

    fn reader(&self) -> Option<&Reader> {
        self.reader.get_or_init(|| Reader::start(self.shared.clone())).as_ref()
    }

    fn is_reading(&self) -> bool {
        self.reader().is_some_and(|reader| !reader.thread.is_finished())
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Reader {
    /// Without a thread, nothing is read ahead.
    fn start(shared: Arc<Shared>) -> Option<Self> {
        let (orders, todo) = mpsc::channel();
        let work = move || {
            for order in todo {
                match order {
                    Order::Read(i) => {
                        let read = shared.layers[i].pages.iter().try_for_each(Pages::read_ahead);
                        let mut state = shared.lock();
                        match read {
                            Ok(()) if state.standing[i] == Standing::Asked => {
                                state.standing[i] = Standing::Here;
                            }
                            Ok(()) => (),
                            // it stays asked for: who waits for it hears why
                            Err(why) => _ = state.unread.insert(i, why),
                        }
                        shared.changed.notify_all();
                    }
                    Order::Drop(i) => shared.layers[i].pages.iter().for_each(Pages::forget),
                }
            }
        };
        let thread = std::thread::Builder::new().name("weights".into()).spawn(work).ok()?;
        Some(Self { orders, thread })
    }
}

impl Layer {
    /// Pages that lie beside each other become one.
    fn new(mut pages: Vec<Pages>) -> Self {
        let bytes = pages.iter().map(|pages| pages.len() as u64).sum();
        pages.sort_by_key(Pages::place);
        pages.dedup_by(|next, before| before.join(next, GAP_MAX));
        Self { pages, bytes }
    }
}

/// How many of the first layers stay: all if they fit, else those that do beside the two largest.
fn kept(layers: &[Layer], bytes: u64) -> usize {
    if layers.iter().map(|layer| layer.bytes).sum::<u64>() <= bytes {
        return layers.len();
    }
    let window = 2 * layers.iter().map(|layer| layer.bytes).max().unwrap_or(0);
    let room = bytes.saturating_sub(window);
    let sums = layers.iter().scan(0, |sum, layer| {
        *sum += layer.bytes;
        Some(*sum)
    });
    sums.take_while(|sum| *sum <= room).count()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::watch::Unwatched;
    use dg_map::MappedFile;

    const LAYER: usize = 1 << 20;

    /// What the process reads is counted for all its threads: one test at a time.
    static DISK: Mutex<()> = Mutex::new(());

    struct Place {
        folder: tempfile::TempDir,
        _alone: MutexGuard<'static, ()>,
    }

    /// Layers of 1 MiB in a file of their own.
    fn turns(layers: usize) -> (Turns, MappedFile, Place) {
        let alone = DISK.lock().unwrap_or_else(PoisonError::into_inner);
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("weights");
        std::fs::write(&path, vec![7; layers * LAYER]).unwrap();
        std::fs::File::open(&path).unwrap().sync_all().unwrap();
        let map = MappedFile::open(&path).unwrap();
        map.forget(0..usize::MAX).unwrap();
        let half = LAYER / 2;
        let pages =
            |i: usize| [i * LAYER + half, i * LAYER].map(|start| Pages::new(&map, start..start + half));
        let turns = Turns::new((0..layers).map(|i| pages(i).to_vec()).collect(), true);
        (Turns { bytes_min: 0, ..turns }, map, Place { folder, _alone: alone })
    }

    /// Bytes of the file that are mapped into this process.
    fn resident(place: &Place) -> usize {
        let maps = std::fs::read_to_string("/proc/self/smaps").unwrap();
        let path = place.folder.path().join("weights");
        let mut lines = maps.lines().skip_while(|line| !line.ends_with(path.to_str().unwrap()));
        let rss = lines.find_map(|line| line.strip_prefix("Rss:")).unwrap();
        rss.trim().trim_end_matches(" kB").parse::<usize>().unwrap() << 10
    }

    fn round(turns: &Turns, layers: usize, mut look: impl FnMut(usize)) {
        for i in 0..layers {
            turns.begin(i, &Unwatched).unwrap();
            look(i);
            turns.end(i);
        }
    }

    #[test]
    fn the_first_layers_stay_and_the_others_come_and_go() {
        let (turns, _map, place) = turns(8);
        // room for five: three stay beside the two that take turns
        turns.keep(Some(5 * LAYER as u64));
        for _ in 0..3 {
            round(&turns, 8, |i| {
                let (held, least) = (resident(&place), (i.min(3) + 1) * LAYER);
                // the reader may be one layer ahead, and one that it is yet to drop behind
                assert!((least..=6 * LAYER).contains(&held), "layer {i}: {held}");
            });
        }
        let standing = turns.shared.lock().standing.clone();
        assert_eq!(standing[3..], [Standing::Away; 5]);
        // of the first three, and one that the reader is yet to drop
        assert!((3 * LAYER..=4 * LAYER).contains(&resident(&place)), "{}", resident(&place));
    }

    /// Bytes that this process has had read from a disk.
    fn read_bytes() -> usize {
        let io = std::fs::read_to_string("/proc/self/io").unwrap();
        let line = io.lines().find_map(|line| line.strip_prefix("read_bytes: ")).unwrap();
        line.parse().unwrap()
    }

    #[test]
    fn a_layer_that_stays_is_read_once_and_the_others_once_a_round() {
        let (turns, _map, _place) = turns(32);
        turns.keep(Some(18 * LAYER as u64));
        let before = read_bytes();
        for _ in 0..3 {
            round(&turns, 32, |_| ());
        }
        let (read, due) = (read_bytes() - before, (32 + 2 * 16) * LAYER);
        match read {
            // a file system in memory
            0 => eprintln!("SKIPPED that layers that stay are read once: the temporary folder has no disk"),
            // of three times all: 96; the next round's first one may be there, and the program's own pages count
            _ => assert!((due..due + 8 * LAYER).contains(&read), "{read}, {due} are due"),
        }
    }

    #[test]
    fn a_layer_that_stays_comes_back_if_the_system_has_taken_it() {
        let (turns, map, place) = turns(8);
        turns.keep(Some(5 * LAYER as u64));
        round(&turns, 8, |_| ());
        map.forget(0..3 * LAYER).unwrap();
        round(&turns, 8, |i| {
            let least = (i.min(3) + 1) * LAYER;
            assert!(resident(&place) >= least, "layer {i}: {}", resident(&place));
        });
    }

    #[test]
    fn a_file_that_was_cut_short_is_an_error_and_no_signal() {
        let (turns, _map, place) = turns(8);
        turns.keep(Some(5 * LAYER as u64));
        let file = std::fs::File::options().write(true).open(place.folder.path().join("weights")).unwrap();
        file.set_len(4 * LAYER as u64).unwrap();
        for i in 0..4 {
            turns.begin(i, &Unwatched).unwrap();
            turns.end(i);
        }
        for i in [4, 6] {
            let error = turns.begin(i, &Unwatched).unwrap_err().to_string();
            assert!(error.starts_with("weights: bytes ") && error.contains("cut short"), "{error}");
        }
        // it may be there again
        file.set_len(8 * LAYER as u64).unwrap();
        turns.keep(Some(5 * LAYER as u64));
        round(&turns, 8, |_| ());
    }

    #[test]
    fn all_stay_where_there_is_room_until_there_is_less() {
        let (turns, _map, place) = turns(4);
        turns.keep(Some(4 * LAYER as u64));
        round(&turns, 4, |_| ());
        assert_eq!(resident(&place), 4 * LAYER);
        turns.keep(Some(0));
        // the thread that drops is the one that reads: its answer comes after
        turns.begin(0, &Unwatched).unwrap();
        turns.end(0);
        turns.begin(2, &Unwatched).unwrap();
        assert!(resident(&place) <= 3 * LAYER, "{}", resident(&place));
    }

    #[test]
    fn nothing_is_done_unasked_or_for_little() {
        let (turns, _map, place) = turns(2);
        round(&turns, 2, |_| ());
        assert_eq!(resident(&place), 0);
        let turns = Turns { bytes_min: BYTES_MIN, ..turns };
        turns.keep(Some(2 * LAYER as u64));
        round(&turns, 2, |_| ());
        assert_eq!(resident(&place), 0);
    }

    #[test]
    fn who_waits_for_weights_can_be_stopped() {
        struct Stopped;
        impl Watch for Stopped {
            fn stop(&self) -> bool {
                true
            }
        }
        let (turns, _map, _place) = turns(2);
        turns.keep(Some(0));
        // a read that never ends
        turns.shared.lock().standing[0] = Standing::Asked;
        assert!(turns.begin(0, &Stopped).is_err());
    }

    #[test]
    fn pages_beside_each_other_are_one() {
        let (turns, ..) = turns(1);
        assert_eq!(turns.shared.layers[0].pages.len(), 1);
        assert_eq!(turns.bytes(), LAYER as u64);
    }
}
