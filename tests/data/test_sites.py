import numpy as np
import pytest

from medvfm_jax.data import BadDataset, open_dataset
from medvfm_jax.data.sites import NO_SITES, read_sites
from tests.data.small_folders import assert_one_sentence, nnunet_folder, plain_folder

MASK = np.eye(4, dtype=np.uint8)


def folder_with(tmp_path, table, names=("a", "b")):
    folder = plain_folder(tmp_path / "d", dict.fromkeys(names, MASK))
    (folder / "sites.csv").write_bytes(table if isinstance(table, bytes) else table.encode())
    return folder


def who(dataset):
    return {case.id: (case.patient, case.site) for case in dataset.cases}


def test_without_a_table_every_case_is_a_patient_of_its_own(tmp_path):
    dataset = open_dataset(plain_folder(tmp_path, {"a": MASK, "b": MASK}))
    assert who(dataset) == {"a": ("a", "all"), "b": ("b", "all")}
    assert read_sites(tmp_path) is NO_SITES


def test_site_and_patient_with_and_without_suffix_and_with_spaces(tmp_path):
    table = "file,site,patient,age\na.png, Oslo ,p1,50\n b,Bern, p1 ,50\n"
    assert who(open_dataset(folder_with(tmp_path, table))) == {"a": ("p1", "Oslo"), "b": ("p1", "Bern")}


def test_what_a_row_leaves_open_is_filled_in(tmp_path):
    table = b"\xef\xbb\xbffile,patient,site\r\na.png,,Oslo\r\nb.png,p2,\r\n"  # as Excel writes it
    assert who(open_dataset(folder_with(tmp_path, table))) == {"a": ("a", "Oslo"), "b": ("p2", "all")}


def test_a_name_with_dots_is_not_mistaken_for_one_with_a_suffix(tmp_path):
    folder = folder_with(tmp_path, "file,site\n1.2.840,Oslo\n1.2.841.png,Bern\n", ("1.2.840", "1.2.841"))
    assert {name: site for name, (_, site) in who(open_dataset(folder)).items()} == {
        "1.2.840": "Oslo",
        "1.2.841": "Bern",
    }


def test_nnunet_cases_are_found_by_case_and_by_file(tmp_path):
    folder = nnunet_folder(tmp_path / "d", ("a", "b"))
    (folder / "sites.csv").write_text("file,site\na_0000.nii.gz,Oslo\nb,Bern\n")
    assert who(open_dataset(folder)) == {"a": ("a", "Oslo"), "b": ("b", "Bern")}


def test_unknown_files_are_ignored(tmp_path):
    table = "file,site\na.png,Oslo\nb.png,Bern\nkept_back.png,Rome\n"
    assert set(who(open_dataset(folder_with(tmp_path, table)))) == {"a", "b"}


@pytest.mark.parametrize("table", ["file,site\nb.png,Bern\n", "file,site\n"])
def test_a_table_that_leaves_images_out_is_refused(tmp_path, table):
    folder = folder_with(tmp_path, table)
    with pytest.raises(BadDataset) as caught:
        open_dataset(folder)
    assert_one_sentence(caught, folder / "sites.csv", "'a'", f"{1 if 'Bern' in table else 2} of the images")


@pytest.mark.parametrize(
    ("table", "words"),
    [
        ("image,hospital\na.png,Oslo\n", "has the columns hospital, image;"),
        ("file;site\na.png;Oslo\n", "expected file, site"),
        ("", "of an empty file"),
        (
            "file,site\na.png,../../S0\n",
            "a site named '../../S0', which begins with a dot or contains a path separator",
        ),
        ("file,site\na.png,a\\b\n", "a site named 'a\\b'"),
        ("file,site\na.png,.S0\n", "a site named '.S0'"),
        ("file,site\n,Oslo\n", "line 2"),
        ("site,file\nOslo\n", "line 2"),
        ("file,site\na.png,Oslo\na,Bern\nb,Bern\n", "two different rows for 'a'"),
        (b"file,site\na.png,\xd8stfold\n", "cannot be read (byte 16 is not UTF-8)"),
    ],
)
def test_a_table_that_makes_no_sense_is_refused(tmp_path, table, words):
    folder = folder_with(tmp_path, table)
    with pytest.raises(BadDataset) as caught:
        open_dataset(folder)
    assert_one_sentence(caught, folder / "sites.csv", words)
