import jax
import pytest
from jax.sharding import AxisType

from medvfm_jax.parallel import AXES, BadMesh, make_mesh, parse_mesh


def test_axes_not_named_have_size_one():
    assert parse_mesh("data=4, model=2") == {"clients": 1, "replica": 1, "data": 4, "model": 2}
    assert parse_mesh("") == dict.fromkeys(AXES, 1)


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("daat=4", "the axis 'daat' does not exist"),
        ("data=2,data=4", "the axis 'data' is given twice"),
        ("data=0", "data=0 is no number of devices"),
        ("data", "data= is no number of devices"),
        ("data=-1", "data=-1 is no number"),
    ],
)
def test_texts_that_are_no_mesh(text, sentence):
    with pytest.raises(BadMesh, match=sentence):
        parse_mesh(text)


def test_the_mesh_is_automatic_and_its_last_axis_varies_fastest():
    mesh = make_mesh("data=4,model=2")
    assert mesh.axis_names == AXES
    assert dict(mesh.shape) == {"clients": 1, "replica": 1, "data": 4, "model": 2}
    assert set(mesh.axis_types) == {AxisType.Auto}
    assert [d.id for d in mesh.devices[0, 0, 0]] == [0, 1]
    assert make_mesh().shape["data"] == len(jax.devices())


def test_a_mesh_of_the_wrong_size_is_refused():
    with pytest.raises(BadMesh, match="data=3 needs 3 devices and there are 8"):
        make_mesh({"data": 3})
    with pytest.raises(BadMesh, match="the axes are clients, replica, data, model"):
        make_mesh({"pipeline": 8})
    assert make_mesh("data=2,clients=1", jax.devices()[:2]).size == 2
