"""The example that makes events of MIMIC and eICU, on made-up tables with their public column names."""

import gzip
import json
import subprocess
import sys
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from dpcgan_fast.data.records import read_records
from dpcgan_fast.data.schema import Schema

SCRIPT = Path(__file__).resolve().parents[2] / "examples" / "code_events.py"
TABLES = {
    "mimic-iv": {
        "hosp/diagnoses_icd.csv.gz": "subject_id,hadm_id,seq_num,icd_code,icd_version\n"
        "1,11,1,5723,9\n1,12,1,I5023,10\n2,21,1,5724,9\n3,31,1,V4582,9\n",
        "hosp/patients.csv.gz": "subject_id,gender,anchor_age,anchor_year,anchor_year_group,dod\n"
        "1,F,52,2180,2014 - 2016,\n2,M,40,2170,2014 - 2016,\n3,F,91,2170,2014 - 2016,\n",
        "hosp/admissions.csv.gz": "subject_id,hadm_id,admittime,hospital_expire_flag\n"
        "1,11,2180-05-07,0\n1,12,2180-06-07,1\n2,21,2170-01-01,0\n3,31,2170-01-01,0\n",
        "hosp/d_icd_diagnoses.csv.gz": "icd_code,icd_version,long_title\n"
        '5723,9,"Portal hypertension"\n5724,9,x\nV4582,9,x\nI5023,10,x\nA000,10,x\n',
    },
    "mimic-iii": {
        "DIAGNOSES_ICD.csv.gz": '"ROW_ID","SUBJECT_ID","HADM_ID","SEQ_NUM","ICD9_CODE"\n'
        '1,1,11,1,"5723"\n2,1,12,1,"4280"\n3,2,21,1,"5724"\n4,3,31,1,"V4582"\n',
        "PATIENTS.csv.gz": '"ROW_ID","SUBJECT_ID","GENDER","DOB","DOD"\n'
        '1,1,"F",2128-03-01 00:00:00,\n2,2,"M",2130-01-01 00:00:00,\n3,3,"F",1870-01-01 00:00:00,\n',
        "ADMISSIONS.csv.gz": '"ROW_ID","SUBJECT_ID","HADM_ID","ADMITTIME","HOSPITAL_EXPIRE_FLAG"\n'
        "1,1,11,2180-05-07 00:00:00,0\n2,1,12,2181-06-07 00:00:00,1\n3,2,21,2170-01-01 00:00:00,0\n"
        "4,3,31,2170-01-01 00:00:00,0\n",
        "D_ICD_DIAGNOSES.csv.gz": '"ROW_ID","ICD9_CODE","SHORT_TITLE","LONG_TITLE"\n'
        '1,"5723","x","x"\n2,"5724","x","x"\n3,"V4582","x","x"\n4,"4280","x","x"\n5,"0010","x","x"\n',
    },
    "eicu": {
        "diagnosis.csv.gz": "diagnosisid,patientunitstayid,diagnosisoffset,diagnosisstring,icd9code\n"
        '1,101,5,cardio,"572.3, K76.6"\n2,102,5,cardio,"I50.9"\n3,201,5,cardio,"572.4"\n4,301,5,x,\n',
        "patient.csv.gz": "patientunitstayid,uniquepid,gender,age,hospitaldischargestatus\n"
        "101,u-1,Female,52,Alive\n102,u-1,Female,53,Expired\n201,u-2,Male,40,Alive\n301,u-3,Female,> 89,Alive\n",
    },
}
CODES = {
    "mimic-iv": [{"ICD9/572", "ICD10/I50"}, {"ICD9/572"}, {"ICD9/V45"}],
    "mimic-iii": [{"ICD9/572", "ICD9/428"}, {"ICD9/572"}, {"ICD9/V45"}],
    "eicu": [{"ICD9/572", "ICD10/I50"}, {"ICD9/572"}, set()],
}
AGES = {"mimic-iv": [52, 40, 91], "mimic-iii": [52, 40, 90], "eicu": [52, 40, 90]}


@pytest.mark.parametrize("source", TABLES)
def test_the_tables_of_a_data_set_become_events_a_vocabulary_and_a_schema(tmp_path, source):
    for name, content in TABLES[source].items():
        path = tmp_path / "set" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(gzip.compress(content.encode()))
    out = tmp_path / "out"
    subprocess.run([sys.executable, SCRIPT, source, tmp_path / "set", "--out", out], check=True, capture_output=True)
    vocabulary = (out / "codes.txt").read_text().split("\n")
    assert {"ICD9/572"} < set(vocabulary)
    schema = Schema.from_dict({**json.loads((out / "schema.json").read_text()), "n_units": 3}, folder=out)
    schema.require_complete()
    table, left = read_records(out / "events.parquet", schema, "data")
    assert left == ()
    rows = sorted(table.to_pylist(), key=lambda row: row["patient"])
    assert [set(row["code"]) for row in rows] == CODES[source]
    assert [row["died"] for row in rows] == [1, 0, 0]
    assert [row["sex"][0] for row in rows] == ["F", "M", "F"]
    assert [int(row["age"]) for row in rows] == AGES[source]
    assert pq.read_schema(out / "events.parquet").names == ["patient", "code", "sex", "age", "died"]


def test_a_table_that_is_not_there_is_named(tmp_path):
    done = subprocess.run(
        [sys.executable, SCRIPT, "mimic-iv", tmp_path, "--out", tmp_path / "out"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    assert done.stderr.startswith("error: there is no diagnoses_icd.csv")
    assert not (tmp_path / "out").exists()
