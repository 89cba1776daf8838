//! Which pictures are finished.

use super::decode::{self, Decoded};
use super::encode;
use dg_core::{Recipe, Seed};
use std::path::{Path, PathBuf};

/// What a finished file must be.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Wanted {
    /// The file.
    pub(crate) path: PathBuf,
    /// What it must record.
    pub(crate) recipe: Recipe,
    /// Whether any seed will do.
    pub(crate) any_seed: bool,
    /// Whether it must record anything: with `--no_metadata` the right size is enough.
    pub(crate) recorded: bool,
}

/// A finished file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Finished {
    /// Its seed: the recorded one, if any.
    pub(crate) seed: Option<Seed>,
    /// blake3 of the RGB bytes that it decodes to.
    pub(crate) pixels_blake3: String,
}

/// What stands in the place of a picture that must be made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum InTheWay {
    /// Nothing that anybody would miss: no file, a damaged picture, no picture at all.
    Nothing,
    /// A picture of another request.
    Other,
    /// A picture that does not record how it was made.
    Foreign,
}

/// Looks at what would be replaced, on several threads.
pub(crate) fn in_the_way(paths: &[PathBuf], threads: usize) -> Vec<InTheWay> {
    in_parallel(paths, threads, |path| look(path))
}

fn look(path: &Path) -> InTheWay {
    if !is_file(path) {
        return InTheWay::Nothing;
    }
    let Ok(bytes) = decode::load(path) else { return InTheWay::Foreign };
    match decode::decode(&bytes) {
        Ok(Decoded { record: None, .. }) => InTheWay::Foreign,
        Ok(Decoded { record: Some(record), rgb, .. }) if record.contradicts(&encode::hash(&rgb)) => {
            InTheWay::Nothing
        }
        Ok(_) => InTheWay::Other,
        Err(_) if decode::is_foreign(&bytes) => InTheWay::Foreign,
        Err(_) => InTheWay::Nothing,
    }
}

/// Looks at all files, on several threads; `None` for those that must be made.
pub(crate) fn finished(wanted: &[Wanted], threads: usize) -> Vec<Option<Finished>> {
    in_parallel(wanted, threads, check_file)
}

fn in_parallel<T: Sync, R: Send>(all: &[T], threads: usize, look: impl Fn(&T) -> R + Sync) -> Vec<R> {
    let share = all.len().div_ceil(threads.max(1)).max(1);
    let look = |part: &[T]| part.iter().map(&look).collect::<Vec<R>>();
    std::thread::scope(|scope| {
        let look = &look;
        let parts: Vec<_> = all.chunks(share).map(|part| scope.spawn(move || look(part))).collect();
        parts.into_iter().flat_map(|part| part.join().expect("decoding does not panic")).collect()
    })
}

fn check_file(wanted: &Wanted) -> Option<Finished> {
    if !is_file(&wanted.path) {
        return None;
    }
    match decode::read(&wanted.path) {
        Ok(decoded) => check(wanted, &decoded),
        Err(reason) => {
            tracing::info!("{}: will be made again: {reason}", wanted.path.display());
            None
        }
    }
}

fn check(wanted: &Wanted, found: &Decoded) -> Option<Finished> {
    let size = wanted.recipe.request.size;
    if (found.width, found.height) != (size.width(), size.height()) {
        return None;
    }
    let pixels_blake3 = encode::hash(&found.rgb);
    if found.record.as_ref().is_some_and(|r| r.contradicts(&pixels_blake3)) {
        tracing::info!("{}: will be made again: damaged pixels", wanted.path.display());
        return None;
    }
    let seed = found.record.as_ref().map(|r| r.recipe.request.seed);
    if wanted.recorded {
        let mut recipe = found.record.as_ref()?.recipe.clone();
        if wanted.any_seed {
            recipe.request.seed = wanted.recipe.request.seed;
        }
        if recipe != wanted.recipe {
            return None;
        }
    }
    Some(Finished { seed, pixels_blake3 })
}

fn is_file(path: &Path) -> bool {
    std::fs::metadata(path).is_ok_and(|m| m.is_file())
}

#[cfg(test)]
mod tests {
    use super::super::metadata::{Record, tests::recipe};
    use super::*;

    fn found(recipe: Option<Recipe>) -> Decoded {
        let record = recipe.map(Record::new);
        Decoded { width: 32, height: 16, rgb: vec![1; 32 * 16 * 3], record }
    }

    fn wanted(any_seed: bool, recorded: bool) -> Wanted {
        Wanted { path: "x.png".into(), recipe: recipe("a"), any_seed, recorded }
    }

    #[test]
    fn only_the_same_request_counts() {
        let mut other_seed = recipe("a");
        other_seed.request.seed = Seed(7);
        for (any_seed, recorded, recipe, expect) in [
            (false, true, Some(recipe("a")), true),
            (false, true, Some(recipe("b")), false),
            (false, true, None, false),
            (false, true, Some(other_seed.clone()), false),
            (true, true, Some(other_seed.clone()), true),
            (true, true, Some(recipe("b")), false),
            (false, false, None, true),
            (false, false, Some(recipe("b")), true),
        ] {
            let result = check(&wanted(any_seed, recorded), &found(recipe.clone()));
            assert_eq!(result.is_some(), expect, "{any_seed} {recorded} {recipe:?}");
        }
        let kept = check(&wanted(true, true), &found(Some(other_seed))).unwrap();
        assert_eq!(kept.seed, Some(Seed(7)));
        let small = Decoded { width: 16, ..found(Some(recipe("a"))) };
        assert_eq!(check(&wanted(false, false), &small), None);
        let mut damaged = found(Some(recipe("a")));
        damaged.record.as_mut().unwrap().decoded_blake3 = Some(encode::hash(b"other pixels"));
        assert_eq!(check(&wanted(false, true), &damaged), None);
    }

    #[test]
    fn the_order_does_not_depend_on_threads() {
        let all: Vec<Wanted> = (0..5).map(|_| wanted(false, true)).collect();
        for threads in [0, 1, 2, 9] {
            assert_eq!(finished(&all, threads), vec![None; 5]);
        }
        assert!(finished(&[], 2).is_empty());
    }
}
