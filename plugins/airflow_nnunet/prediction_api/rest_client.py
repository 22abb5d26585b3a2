"""A small client of Airflow's public REST API for the demo, the tests and scripts."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any

import httpx

from nnunet_jobs.contract.http.loopback import is_loopback

# Airflow answers this if SQLite, which the demo and tests use, was locked for too long. Nothing was written then.
_LOCKED, _LOCKED_TRIES, _LOCKED_WAIT_S = '"reason":"Database error"', 4, 0.5
FINISHED_RUN = frozenset({"success", "failed"})
FINISHED_TASK = frozenset({"success", "failed", "skipped", "upstream_failed", "removed"})


class RestError(RuntimeError):
    """Airflow refused a request, or did not reach a state in time. The message has the request and the answer."""


class AirflowClient:
    """Calls Airflow's REST API. It logs in again when the token has expired.

    Args:
        url: URL of the API server.
        username: Name of the user to log in as.
        password: Password of that user.
        token: Token to use instead of user name and password.
    """

    def __init__(self, url: str, *, username: str = "", password: str = "", token: str | None = None) -> None:
        self.url = url.rstrip("/")
        self._login = {"username": username, "password": password}
        self._given = self._token = token
        # Proxy settings of the environment must not apply to loopback addresses.
        self._http = httpx.Client(timeout=30, trust_env=not is_loopback(httpx.URL(self.url).host))

    def close(self) -> None:
        """Close the connections."""
        self._http.close()

    def send(self, method: str, path: str, *, headers: Mapping[str, str] | None = None, **content: Any) -> httpx.Response:
        """Send one request to the server with the token, and return any answer.

        Args:
            content: Arguments of httpx: ``json``, ``params``, ``data``, ``files`` (they may be sent twice).
        """
        for attempt in (1, 2):
            if self._token is None:
                self._token = self._new_token()
            bearer = {"Authorization": f"Bearer {self._token}"}
            answer = self._http.request(method, f"{self.url}/{path}", headers={**(headers or {}), **bearer}, **content)
            if answer.status_code != 401 or attempt == 2 or self._given:
                break
            self._token = None
        return answer

    def request(self, method: str, path: str, *, json: Any = None, params: Mapping[str, Any] | None = None) -> Any:
        """Send one request to ``/api/v2`` and return the JSON answer.

        Raises:
            RestError: The status is 400 or more.
        """
        for left in reversed(range(_LOCKED_TRIES)):
            answer = self.send(method, f"api/v2/{path}", json=json, params=params, headers={"Accept": "application/json"})
            if not left or answer.status_code != 500 or _LOCKED not in answer.text:
                break
            time.sleep(_LOCKED_WAIT_S)
        if answer.status_code >= 400:
            raise RestError(f"{method} {path}: {answer.status_code}: {answer.text[:2000]}")
        return answer.json() if answer.content else None

    def health(self) -> dict[str, dict[str, Any]]:
        """Return the state and newest heartbeat of each component; empty if the API server is not up."""
        try:
            answer = self._http.get(f"{self.url}/api/v2/monitor/health", timeout=5)
        except httpx.TransportError:
            return {}
        return dict(answer.json()) if answer.status_code == 200 else {}

    # --- DAGs and runs ------------------------------------------------------------------------------------------
    def wait_for_dag(self, dag_id: str, *, timeout_s: float = 60) -> None:
        """Wait until the DAG processor has published a DAG, then unpause it."""

        def published() -> bool:
            try:
                found: dict[str, Any] = self.request("GET", f"dags/{dag_id}")
            except RestError:
                return False
            return not found["is_stale"] and not found["has_import_errors"]

        wait_until(published, timeout_s=timeout_s, what=lambda: f"DAG {dag_id} was not published; import errors: {self.import_errors()}")
        self.request("PATCH", f"dags/{dag_id}", json={"is_paused": False})

    def import_errors(self) -> dict[str, str]:
        """Return the DAG files that failed to import, with their errors."""
        return {error["filename"]: error["stack_trace"] for error in self.request("GET", "importErrors")["import_errors"]}

    def trigger(self, dag_id: str, conf: Mapping[str, Any] | None = None) -> str:
        """Start a run; returns its id."""
        run = self.request("POST", f"dags/{dag_id}/dagRuns", json={"logical_date": None, "conf": dict(conf or {})})
        return str(run["dag_run_id"])

    def run_state(self, dag_id: str, run_id: str) -> str:
        """Return the state of a run: queued, running, success or failed."""
        return str(self.request("GET", f"dags/{dag_id}/dagRuns/{run_id}")["state"])

    def wait_for_run(
        self, dag_id: str, run_id: str, *, timeout_s: float, progress: Callable[[], None] | None = None, interval_s: float = 1.0
    ) -> str:
        """Wait until a run is over, with calls of ``progress`` about every ``interval_s`` seconds, and return its state."""
        state = ""

        def over() -> bool:
            nonlocal state
            if progress is not None:
                progress()
            state = self.run_state(dag_id, run_id)
            return state in FINISHED_RUN

        wait_until(over, timeout_s=timeout_s, interval_s=interval_s, what=lambda: f"run {run_id}: {self.states(dag_id, run_id)}")
        return state

    # --- task instances -----------------------------------------------------------------------------------------
    def task_instances(self, dag_id: str, run_id: str) -> list[dict[str, Any]]:
        """Return all task instances of a run, with each mapped one."""
        answer = self.request("GET", f"dags/{dag_id}/dagRuns/{run_id}/taskInstances", params={"limit": 1000})
        return list(answer["task_instances"])

    def states(self, dag_id: str, run_id: str) -> dict[tuple[str, int], str | None]:
        """Return the state of each task instance by task id and map index."""
        return {(item["task_id"], item["map_index"]): item["state"] for item in self.task_instances(dag_id, run_id)}

    def task_instance(self, dag_id: str, run_id: str, task_id: str, map_index: int = -1) -> dict[str, Any]:
        """Return one task instance."""
        answer = self.request("GET", f"{self._task(dag_id, run_id, task_id)}{'' if map_index < 0 else f'/{map_index}'}")
        return dict(answer)

    def wait_for_task(self, dag_id: str, run_id: str, task_id: str, *states: str, map_index: int = -1, timeout_s: float) -> dict[str, Any]:
        """Wait until a task instance is in one of ``states``; returns it."""
        seen: dict[str, Any] = {}

        def there() -> bool:
            nonlocal seen
            try:
                seen = self.task_instance(dag_id, run_id, task_id, map_index)
            except RestError:  # a mapped instance does not exist before its upstream task has ended
                return False
            return seen["state"] in states

        wait_until(
            there,
            timeout_s=timeout_s,
            what=lambda: f"{task_id}[{map_index}] is {seen.get('state')}, not {states}: {self.states(dag_id, run_id)}",
        )
        return seen

    def xcom(self, dag_id: str, run_id: str, task_id: str, *, map_index: int = -1, key: str = "return_value") -> Any:
        """Return an XCom value."""
        path = f"{self._task(dag_id, run_id, task_id)}/xcomEntries/{key}"
        return self.request("GET", path, params={"map_index": map_index, "deserialize": False, "stringify": False})["value"]

    def log(self, dag_id: str, run_id: str, task_id: str, *, map_index: int = -1, attempt: int = 1) -> str:
        """Return the task's log as a string of lines."""
        path = f"{self._task(dag_id, run_id, task_id)}/logs/{attempt}"
        lines = self.request("GET", path, params={"map_index": map_index, "full_content": True})["content"]
        return "\n".join(line if isinstance(line, str) else str(line.get("event", line)) for line in lines)

    def set_state(self, dag_id: str, run_id: str, task_id: str, state: str, *, map_index: int = -1) -> None:
        """Mark a task instance ``success``, ``failed`` or ``skipped``, as the button in the UI does."""
        path = f"{self._task(dag_id, run_id, task_id)}{'' if map_index < 0 else f'/{map_index}'}"
        self.request("PATCH", path, json={"new_state": state})

    def clear(self, dag_id: str, run_id: str, task_id: str, *, map_index: int = -1, downstream: bool = False) -> None:
        """Clear a task instance, so that it runs again."""
        task: Any = task_id if map_index < 0 else [task_id, map_index]
        body = {"dag_run_id": run_id, "task_ids": [task], "dry_run": False, "only_failed": False, "include_downstream": downstream}
        self.request("POST", f"dags/{dag_id}/clearTaskInstances", json=body)

    def set_pool(self, name: str, slots: int, *, include_deferred: bool = True) -> None:
        """Create a pool, or change an existing one."""
        body = {"name": name, "slots": slots, "include_deferred": include_deferred, "description": "nnU-Net jobs in flight"}
        try:
            self.request("POST", "pools", json=body)
        except RestError:
            self.request("PATCH", f"pools/{name}", json={key: value for key, value in body.items() if key != "name"} | {"pool": name})

    @staticmethod
    def _task(dag_id: str, run_id: str, task_id: str) -> str:
        return f"dags/{dag_id}/dagRuns/{run_id}/taskInstances/{task_id}"

    def _new_token(self) -> str:
        answer = self._http.post(f"{self.url}/auth/token", json=self._login)
        if answer.status_code >= 400:
            raise RestError(f"login at {self.url} as {self._login['username']!r}: {answer.status_code}: {answer.text[:500]}")
        return str(answer.json()["access_token"])


def wait_until(condition: Callable[[], bool], *, timeout_s: float, what: Callable[[], str], interval_s: float = 0.5) -> None:
    """Wait until a condition is true.

    Raises:
        RestError: ``condition`` is still False after ``timeout_s`` seconds. ``what`` returns the message.
    """
    end = time.monotonic() + timeout_s
    while not condition():
        if time.monotonic() > end:
            raise RestError(f"not within {timeout_s:.0f} s: {what()}")
        time.sleep(interval_s)
