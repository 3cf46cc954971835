import time

from pat.common.progress_bar import said_if_slow


def test_slow_work_says_what_it_does_and_quick_work_nothing(capsys):
    with said_if_slow("starting", after_s=60):
        pass
    with said_if_slow("reading", after_s=0.01):
        time.sleep(0.5)
    assert capsys.readouterr().err == "reading ...\n"
