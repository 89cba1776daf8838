#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| diffgentor_fuzz::bulk_job(bytes));
