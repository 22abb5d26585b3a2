"""``airflow nnunet predict``: post a case to the prediction API of a running Airflow, wait for it, save its segmentation.

Ends with a code of :class:`~nnunet_jobs.contract.exit_codes.Exit`: done also means taken, without --wait; not now means no answer, no
place, or not in time. Passwords and tokens come from the environment, never from the command line, which every user of a machine can see.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from pathlib import Path
from typing import Any

import httpx

from airflow_nnunet.cli.command import command
from airflow_nnunet.prediction_api.client import PredictionsClient, RequestProblem
from airflow_nnunet.prediction_api.rest_client import RestError
from nnunet_jobs.contract.exit_codes import Exit

TOKEN, USERNAME, PASSWORD, URL = "NNUNET_API_TOKEN", "NNUNET_API_USERNAME", "NNUNET_API_PASSWORD", "NNUNET_API_URL"


@command
def predict_command(args: argparse.Namespace) -> int:
    """The command: the id on stdout (or JSON), what goes wrong on stderr."""
    missing = [path for path in args.images if not Path(path).is_file()]
    if missing:
        return _say(f"{missing[0]}: no such file", Exit.REFUSED)
    if args.output and not Path(args.output).absolute().parent.is_dir():
        return _say(f"--output {args.output}: its folder is not there", Exit.REFUSED)
    url = args.url or os.environ.get(URL) or _configured_url()
    token, username = os.environ.get(TOKEN), os.environ.get(USERNAME, "")
    if not token and not username:
        return _say(f"set {TOKEN}, or {USERNAME} and {PASSWORD}, in the environment", Exit.REFUSED)
    try:
        client = PredictionsClient(url, username=username, password=os.environ.get(PASSWORD, ""), token=token)
    except httpx.InvalidURL as error:
        return _say(f"--url={url!r}: not an address ({error}); such as http://127.0.0.1:8080", Exit.REFUSED)
    try:
        return _predict(client, args)
    except RequestProblem as error:
        later = f" (Retry-After: {error.retry_after_s} s)" if error.retry_after_s else ""
        return _say(f"{error.status}: {error}{later}", Exit.NOT_NOW if error.passing else Exit.REFUSED)
    except RestError as error:
        return _say(str(error), Exit.REFUSED)
    except httpx.TransportError as error:
        return _say(f"{url}: no answer ({type(error).__name__}); is the API server up? --url or {URL} says where it is", Exit.NOT_NOW)
    except TimeoutError as error:
        return _say(str(error), Exit.NOT_NOW)
    finally:
        client.close()


def _predict(client: PredictionsClient, args: argparse.Namespace) -> int:
    prediction = client.predict([Path(path) for path in args.images], dataset=args.dataset, model=args.model, key=args.key)
    if not args.json:
        print(prediction, flush=True)
    if not (args.wait or args.output):
        if args.json:
            _print_json(client.status(prediction))
        return Exit.DONE
    found = client.wait(prediction, timeout_s=args.timeout)
    if found["status"] == "succeeded" and args.output:
        client.save_result(prediction, Path(args.output))
    if args.json:
        _print_json(found)
    if found["status"] != "succeeded":
        return _say(f"{found['status']}: {found.get('reason', '')}".rstrip(": "), Exit.FAILED)
    if not args.json:
        for label, volume in found.get("volumes_ml", {}).items():
            print(f"{label}: {volume:.3f} ml")
    return Exit.DONE


def _configured_url() -> str:
    from airflow.configuration import conf

    return str(conf.get("api", "base_url", fallback="") or "http://127.0.0.1:8080")


def _print_json(data: dict[str, Any]) -> None:
    print(json.dumps(data, indent=1))


def _say(message: str, code: int) -> int:
    print(message, file=sys.stderr)
    return code
