"""Methods as compiled programs: outside of one, every operation of every shape is a program of its own to compile."""

import jax


def compiled(method, *args):
    """A method's answer, by one program for all objects and arguments of such shapes; of no pytree, for equal ones."""
    this = method.__self__
    static = (0,) if jax.tree_util.treedef_is_leaf(jax.tree.structure(this)) else ()
    return jax.jit(method.__func__, static_argnums=static)(this, *args)
