//! Libraries that are not there, not what they should be, or too old.

use crate::stub::Stub;
use dg_nccl::driver::About;
use dg_nccl::{Driver, GpuError, Library, Version};
use std::path::PathBuf;

#[test]
fn no_driver_is_one_error_with_a_hint() {
    let names = ["/nowhere/libcuda.so.1", "libno-such-driver.so"].map(PathBuf::from);
    let error = Driver::load_from(&names).unwrap_err();
    assert!(
        matches!(&error, GpuError::NoDriver { tried, .. } if tried == "/nowhere/libcuda.so.1, libno-such-driver.so")
    );
    let text = error.to_string();
    assert!(text.contains("no NVIDIA driver here") && text.contains("hint: "), "{text}");
}

#[test]
fn no_nccl_is_one_error_with_a_hint() {
    let text = Library::load_from(&["libno-such-nccl.so".into()]).unwrap_err().to_string();
    assert!(
        text.contains("no NCCL here") && text.contains("libnccl2") && text.contains("DG_NCCL_LIBRARY"),
        "{text}"
    );
}

#[test]
fn another_library_of_that_name_is_told_by_what_it_lacks() {
    let libm = PathBuf::from("libm.so.6");
    let error = Library::load_from(std::slice::from_ref(&libm)).unwrap_err();
    assert!(matches!(&error, GpuError::NoSymbol { symbol: "ncclGetVersion", .. }), "{error}");
    let error = Driver::load_from(&[libm]).unwrap_err();
    assert!(matches!(&error, GpuError::NoSymbol { symbol: "cuInit", .. }), "{error}");
}

#[test]
fn an_old_nccl_is_refused_with_both_versions() {
    let stub = Stub::new();
    stub.version(22_605);
    let error = Library::load_from(&[stub.path()]).unwrap_err();
    assert!(matches!(&error, GpuError::TooOld { have: Version(22_605), .. }), "{error}");
    let text = error.to_string();
    assert!(text.contains("is NCCL 2.26.5; 2.27.0 or newer is needed; hint: "), "{text}");
    assert!(text.contains("\"nvidia-nccl-cu12>=2.27\"") && text.contains("DG_NCCL_LIBRARY"), "{text}");
    stub.version(22_700);
    assert_eq!(Library::load_from(&[stub.path()]).unwrap().version(), Version(22_700));
    stub.version(23_003);
    let library = Library::load_from(&[stub.path()]).unwrap();
    assert_eq!((library.version().to_string(), library.path()), ("2.30.3".into(), &*stub.path()));
}

#[test]
fn the_driver_tells_what_there_is() {
    let stub = Stub::new();
    let driver = Driver::load_from(&[PathBuf::from("/nowhere.so"), stub.path()]).unwrap();
    assert_eq!((driver.version().unwrap(), driver.count().unwrap()), (12_080, 2));
    let about = About { name: "Stub 1".into(), bytes: 8 << 30, capability: (9, 0) };
    assert_eq!(driver.describe(1).unwrap(), about);
    let error = driver.describe(2).unwrap_err();
    assert_eq!(error, GpuError::NoDevice { ordinal: 2, count: 2 });
    assert_eq!(driver.context(0).unwrap().memory().unwrap(), (8 << 30, 8 << 30));
}
