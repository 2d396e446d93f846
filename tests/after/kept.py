"""What is asked of a fit that was kept, here and in another process; and that process."""

import inspect
import pathlib
import pickle
import sys

import jax
import numpy as np

import jaxem


def answers(fit, data):
    """What a fit says of rows, as plain arrays; of a model that is asked nothing of them its objective there."""
    rows = data[0] if type(fit.model).__name__ == "PartlyLabelled" else data
    found = [fit.params, np.array(fit.verdict())]
    for name in sorted({"predict", "log_prob", "encode"} & set(dir(fit))):
        if name != "log_prob" or not fit.model.scales:
            question = getattr(fit, name)
            drawn = "key" in inspect.signature(question).parameters
            found.append({name: question(rows, key=jax.random.key(7)) if drawn else question(rows)})
    if len(found) == 2:
        found.append(fit.model.elbo_data(fit.params, data, None, jax.random.key(8)))
    return [np.asarray(leaf) for leaf in jax.tree.leaves(found[2:]) + jax.tree.leaves(found[:2])]


def main(folder):
    """Reads every fit and what it is asked, and writes the answers."""
    jax.config.update("jax_enable_x64", True)
    jax.config.update("jax_num_cpu_devices", 8)
    import test_continuous  # noqa: F401  the models of these tests, which files may only name
    import test_enumerated  # noqa: F401
    import test_mean_field  # noqa: F401

    folder, told = pathlib.Path(folder), {}
    for name, data in pickle.loads((folder / "data.pickle").read_bytes()).items():
        told[name] = [answers(jaxem.load(folder / f"{name}.npz"), data)]
        told[name].append(answers(pickle.loads((folder / f"{name}.pickle").read_bytes()), data))
    (folder / "answers.pickle").write_bytes(pickle.dumps(told))


if __name__ == "__main__":
    main(sys.argv[1])
