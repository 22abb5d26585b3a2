"""Which failure gets another try, and when."""

from __future__ import annotations

from datetime import timedelta
from types import SimpleNamespace

import pytest
from airflow.sdk import DAG, RetryPolicy
from airflow.sdk.definitions.retry_policy import RetryAction

from airflow_nnunet.jobs.exceptions import NnunetJobError, to_airflow_error
from airflow_nnunet.jobs.retry import NnunetRetryPolicy
from airflow_nnunet.operators import PreprocessOperator, TrainFoldOperator
from nnunet_jobs.contract.failure import ConfigError, Failure, FailureClass, Fault


def error(failure_class: FailureClass, *, cancelled: bool = False) -> NnunetJobError:
    return to_airflow_error(Failure(failure_class=failure_class, message="why", cancelled=cancelled))


@pytest.mark.parametrize("failure_class", list(FailureClass))
def test_every_class_has_an_exception_that_keeps_it(failure_class: FailureClass) -> None:
    assert error(failure_class).failure_class is failure_class


@pytest.mark.parametrize("failure_class", list(FailureClass))
def test_data_and_config_fail_at_once_and_the_rest_is_tried_again(failure_class: FailureClass) -> None:
    decision = NnunetRetryPolicy().evaluate(error(failure_class), 1, 3)
    fails = failure_class in (FailureClass.DATA, FailureClass.CONFIG)
    assert decision.action is (RetryAction.FAIL if fails else RetryAction.RETRY)
    assert str(failure_class) in str(decision.reason)


def test_a_cancelled_job_is_not_tried_again() -> None:
    assert NnunetRetryPolicy().evaluate(error(FailureClass.INTERRUPTED, cancelled=True), 1, 3).action is RetryAction.FAIL


def test_errors_of_the_contract_and_foreign_errors_are_classified_too() -> None:
    policy = NnunetRetryPolicy()
    assert policy.evaluate(ConfigError("epochs=0: must be 1 or more"), 1, 3).action is RetryAction.FAIL
    assert policy.evaluate(OSError("something"), 1, 3).action is RetryAction.RETRY


def test_gpu_out_of_memory_gets_two_tries_also_after_a_clear() -> None:
    policy, out_of_memory = NnunetRetryPolicy(), error(FailureClass.GPU_OOM)
    assert policy.evaluate(out_of_memory, 1, 3).action is RetryAction.RETRY
    assert policy.evaluate(out_of_memory, 2, 3).action is RetryAction.FAIL
    context = {"task": SimpleNamespace(retries=3)}  # cleared after its second try: tries 3 to 6, max_tries 2 + 3
    assert policy.evaluate(out_of_memory, 3, 5, context).action is RetryAction.RETRY  # type: ignore[arg-type]
    assert policy.evaluate(out_of_memory, 4, 5, context).action is RetryAction.FAIL  # type: ignore[arg-type]


def test_fault_45_fifty_tasks_that_failed_together_do_not_come_back_together() -> None:
    policy = NnunetRetryPolicy(base=10, cap=100)
    for tries in (1, 2, 3, 4, 5, 50, 10_000):
        longest = min(10 * 2 ** min(tries - 1, 60), 100)
        delays = [policy.delay(tries).total_seconds() for _ in range(50)]
        assert all(longest / 2 <= delay <= longest for delay in delays)
        assert len({round(delay, 6) for delay in delays}) > 40
        assert max(delays) - min(delays) > longest / 8


def test_a_policy_survives_json() -> None:
    policy = NnunetRetryPolicy(base=1.5, cap=30, gpu_oom_tries=3)
    assert vars(NnunetRetryPolicy.deserialize(policy.serialize())) == vars(policy)


def test_a_policy_that_makes_no_sense_is_refused() -> None:
    with pytest.raises(ValueError, match="base=0"):
        NnunetRetryPolicy(base=0)
    with pytest.raises(ValueError, match="gpu_oom_tries=0"):
        NnunetRetryPolicy(gpu_oom_tries=0)


def test_plain_and_mapped_operators_carry_retries_policy_and_pool_into_the_serialized_dag() -> None:
    from airflow.serialization.serialized_objects import DagSerialization

    with DAG("d", schedule=None) as dag:
        PreprocessOperator(task_id="plain", datasets=["4"])
        TrainFoldOperator.partial(task_id="mapped", dataset=4).expand_kwargs([{"configuration": "2d", "fold": 0}])
        TrainFoldOperator.partial(task_id="own", dataset=4, pool="fast", retries=1).expand_kwargs([{"configuration": "2d", "fold": 0}])
    assert isinstance(dag.get_task("mapped").retry_policy, RetryPolicy)
    stored = DagSerialization.from_dict(DagSerialization.to_dict(dag))
    for name, pool, retries in (("plain", "default_pool", 3), ("mapped", "gpu", 3), ("own", "fast", 1)):
        task = stored.get_task(name)
        assert (task.pool, task.retries, task.has_retry_policy) == (pool, retries, True)
        assert task.retry_delay == timedelta(seconds=15)
    assert "fold" in str(stored.get_task("mapped").map_index_template)


def test_the_dags_default_args_win_over_the_operators_defaults() -> None:
    with DAG("d", schedule=None, default_args={"pool": "team", "retries": 7}):
        plain = TrainFoldOperator(task_id="plain", dataset=4, configuration="2d", fold=0)
        mapped = TrainFoldOperator.partial(task_id="mapped", dataset=4).expand_kwargs([{"configuration": "2d", "fold": 0}])
    assert (plain.pool, plain.retries) == ("team", 7)
    assert (mapped.pool, mapped.retries) == ("team", 7)


def test_the_message_shows_the_first_faults_and_says_how_many_more() -> None:
    faults = tuple(Fault(code="shape", message="differs", case=f"case_{number}") for number in range(25))
    text = str(to_airflow_error(Failure(failure_class=FailureClass.DATA, message="25 faults", faults=faults), where="/jobs/x"))
    assert "case_0" in text
    assert "case_24" not in text
    assert "and 5 more" in text
    assert "/jobs/x" in text
