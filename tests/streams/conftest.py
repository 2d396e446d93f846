import pytest
import sources


@pytest.fixture(scope="session")
def folder(tmp_path_factory):
    """Files of the same rows, not to be changed."""
    folder = tmp_path_factory.mktemp("sources")
    sources.write(folder)
    return folder
