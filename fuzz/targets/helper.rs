#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| nexus_tests::hostile::run("helper", input));
