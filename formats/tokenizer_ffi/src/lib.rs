//! The Hugging Face `tokenizers` crate behind a C ABI: an opaque handle, plain buffers, error strings.
//! No panic crosses the boundary. The C++ side is formats/tokenizer.cc, which repeats the declarations.

use std::os::raw::c_char;
use std::panic::{catch_unwind, AssertUnwindSafe};
use std::{ffi::CString, ptr, slice};

use tokenizers::Tokenizer;

/// Stores `message` in `*error`; the caller frees it by `ptq_tokenizer_free_error`.
unsafe fn set_error(error: *mut *mut c_char, message: String) {
    let text = message.replace('\0', " ");
    *error = CString::new(text).map_or(ptr::null_mut(), CString::into_raw);
}

/// Runs `body`; an error or a panic becomes `*error` and the result None.
unsafe fn guarded<T>(
    error: *mut *mut c_char,
    body: impl FnOnce() -> Result<T, String>,
) -> Option<T> {
    match catch_unwind(AssertUnwindSafe(body)) {
        Ok(Ok(value)) => Some(value),
        Ok(Err(message)) => {
            set_error(error, message);
            None
        }
        Err(panic) => {
            let message = panic
                .downcast_ref::<String>()
                .map(String::as_str)
                .or_else(|| panic.downcast_ref::<&str>().copied())
                .unwrap_or("unknown panic");
            set_error(error, format!("the tokenizer library failed: {message}"));
            None
        }
    }
}

unsafe fn utf8<'a>(data: *const u8, size: usize) -> Result<&'a str, String> {
    if size == 0 {
        return Ok("");
    }
    std::str::from_utf8(slice::from_raw_parts(data, size)).map_err(|e| format!("not UTF-8: {e}"))
}

/// Parses the bytes of a tokenizer.json. Null with `*error` set on failure.
///
/// # Safety
/// `data` holds `size` bytes; `error` is writable.
#[no_mangle]
pub unsafe extern "C" fn ptq_tokenizer_open(
    data: *const u8,
    size: usize,
    error: *mut *mut c_char,
) -> *mut Tokenizer {
    guarded(error, || {
        let mut tokenizer =
            Tokenizer::from_bytes(slice::from_raw_parts(data, size)).map_err(|e| e.to_string())?;
        tokenizer.with_truncation(None).map_err(|e| e.to_string())?;
        tokenizer.with_padding(None);
        Ok(Box::into_raw(Box::new(tokenizer)))
    })
    .unwrap_or(ptr::null_mut())
}

/// Encodes UTF-8 text without special tokens. On success true, `*ids` and `*count` set, to be freed by
/// `ptq_tokenizer_free_ids`; else false with `*error` set.
///
/// # Safety
/// `tokenizer` comes from `ptq_tokenizer_open`; `text` holds `size` bytes; the rest is writable.
#[no_mangle]
pub unsafe extern "C" fn ptq_tokenizer_encode(
    tokenizer: *const Tokenizer,
    text: *const u8,
    size: usize,
    ids: *mut *mut u32,
    count: *mut usize,
    error: *mut *mut c_char,
) -> bool {
    let encoded = guarded(error, || {
        let encoding = (*tokenizer)
            .encode_fast(utf8(text, size)?, false)
            .map_err(|e| e.to_string())?;
        Ok(encoding.get_ids().to_vec().into_boxed_slice())
    });
    match encoded {
        Some(values) => {
            *count = values.len();
            *ids = Box::into_raw(values) as *mut u32;
            true
        }
        None => false,
    }
}

/// The id of a token by its content, or -1.
///
/// # Safety
/// As `ptq_tokenizer_encode`.
#[no_mangle]
pub unsafe extern "C" fn ptq_tokenizer_token_to_id(
    tokenizer: *const Tokenizer,
    token: *const u8,
    size: usize,
) -> i64 {
    let mut ignored: *mut c_char = ptr::null_mut();
    let id = guarded(&mut ignored, || Ok((*tokenizer).token_to_id(utf8(token, size)?)));
    ptq_tokenizer_free_error(ignored);
    id.flatten().map_or(-1, i64::from)
}

/// # Safety
/// `ids` and `count` as `ptq_tokenizer_encode` returned them.
#[no_mangle]
pub unsafe extern "C" fn ptq_tokenizer_free_ids(ids: *mut u32, count: usize) {
    if !ids.is_null() {
        drop(Box::from_raw(ptr::slice_from_raw_parts_mut(ids, count)));
    }
}

/// # Safety
/// `error` comes from a function of this library, or is null.
#[no_mangle]
pub unsafe extern "C" fn ptq_tokenizer_free_error(error: *mut c_char) {
    if !error.is_null() {
        drop(CString::from_raw(error));
    }
}

/// # Safety
/// `tokenizer` comes from `ptq_tokenizer_open`, or is null, and isn't used afterwards.
#[no_mangle]
pub unsafe extern "C" fn ptq_tokenizer_free(tokenizer: *mut Tokenizer) {
    if !tokenizer.is_null() {
        // A panic in a destructor must not reach C either.
        let _ = catch_unwind(AssertUnwindSafe(|| drop(Box::from_raw(tokenizer))));
    }
}
