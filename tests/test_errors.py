"""Storage errors: the user's mistakes apart from what may pass; one line each."""

import errno
import os

import pytest
import requests
from gcsfs.retry import HttpError

from prts_jax.errors import StorageError, UserError, one_line, storage_errors, without_credentials

USER = [errno.EACCES, errno.EROFS, errno.ENOTDIR, errno.EISDIR, errno.ENOENT, errno.ENAMETOOLONG]
STORAGE = [errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.ESTALE, errno.ETIMEDOUT]


def converted(error: BaseException) -> Exception:
    with pytest.raises((UserError, StorageError)) as caught, storage_errors("d/f: no"):
        raise error
    assert str(caught.value).startswith("d/f: no (")
    return caught.value


@pytest.mark.parametrize("code", [*USER, *STORAGE])
def test_error_codes_tell_the_users_mistakes_from_failing_storage(code):
    by_tensorstore = ValueError(f"ABORTED: x: {os.strerror(code)} [os_error_code='{code}']")
    for error in (OSError(code, os.strerror(code)), by_tensorstore):
        result = converted(error)
        assert isinstance(result, UserError if code in USER else StorageError)
        assert os.strerror(code) in str(result)


@pytest.mark.parametrize(
    "error",
    [
        OSError("Forbidden: b/bucket/o\nno access"),  # gcsfs, HTTP 403
        TimeoutError(),
        ConnectionRefusedError(errno.ECONNREFUSED, "Connection refused"),
        requests.exceptions.ProxyError(),  # gcsfs, HTTP 502
        ValueError("PERMISSION_DENIED: no [http_response_code='403']"),  # tensorstore
        ValueError("ABORTED: All 32 retry attempts failed: away [http_response_code='503']"),
        ValueError("ABORTED: Could not connect to server [curl_code='7']"),
    ],
)
def test_an_object_store_that_refuses_or_is_away_is_no_mistake_of_the_user(error):
    result = converted(error)
    assert isinstance(result, StorageError)
    assert "\n" not in str(result)


def test_the_http_code_of_an_object_store_is_named():
    for error in (HttpError({"code": 503}), ValueError("x [http_response_code='503']")):
        assert "HTTP 503" in str(converted(error))


def test_a_missing_bucket_is_the_users_mistake():
    for error in (FileNotFoundError("b/x/o"), ValueError("NOT_FOUND: [http_response_code='404']")):
        assert isinstance(converted(error), UserError)


def test_other_errors_pass_unchanged():
    for error in (ValueError("DATA_LOSS: checksum"), KeyError("x"), UserError("no")):
        with pytest.raises(type(error)) as caught, storage_errors("d: no"):
            raise error
        assert caught.value is error


def test_messages_stay_on_one_line_and_show_control_characters():
    assert one_line("a\nb\x1b[31m") == "a\\nb\\x1b[31m"
    assert len(one_line("x" * 10_000)) < 300


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("https://me:SECRET@host/x.git", "https://***@host/x.git"),
        ("--source=https://SECRET@host/x.git'", "--source=https://***@host/x.git'"),
        ("ssh://me:SECRET@host/x", "ssh://***@host/x"),
        ("ssh://git@host/x", "ssh://git@host/x"),
        ("https://host/x?access_token=SECRET&y=1", "https://host/x?access_token=***&y=1"),
        ("https://me:SE@CRET@host/x", "https://***@host/x"),
        ("gs://bucket/a@b", "gs://bucket/a@b"),
    ],
)
def test_credentials_in_urls_are_never_shown(url, shown):
    assert without_credentials(url) == shown
    assert "SECRET" not in one_line(f"--source={url}: no")
